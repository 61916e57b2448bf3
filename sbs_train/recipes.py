"""The named recipes: one value of `TrainConfig` each."""

from sbs_train.contract.config import FinetuneConfig, PretrainConfig, SearchConfig, TrainConfig

DEFAULT_RECIPE = "digits-resnet20"

RECIPES: dict[str, TrainConfig] = {
    "digits-resnet20": TrainConfig(
        model="resnet20",
        data="digits",
        batch_size=64,
        pretrain=PretrainConfig(epochs=30, lr=0.05),
        search=SearchConfig(epochs=30),
        finetune=FinetuneConfig(epochs=30),
    ),
    "fashion-mnist-resnet20": TrainConfig(
        model="resnet20",
        data="fashion-mnist",
        pretrain=PretrainConfig(epochs=30),
        search=SearchConfig(epochs=15),
        finetune=FinetuneConfig(epochs=30),
    ),
}
