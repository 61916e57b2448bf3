"""The named recipes, one value of `TrainConfig` each, and presets that change one."""

from collections.abc import Callable
from dataclasses import replace

from sbs_train.contract.config import FinetuneConfig, PretrainConfig, SearchConfig, TrainConfig

DEFAULT_RECIPE = "digits-resnet20"


def _cifar100(model: str, target: str) -> TrainConfig:
    """Liu et al. (TPAMI 2023, section 4.1): 30 epochs of search, 200 of fine-tuning, rates divided at 80 and 120."""
    return TrainConfig(
        model=model,
        data="cifar100",
        target=target,
        batch_size=128,
        pretrain=PretrainConfig(epochs=200, lr=0.1, milestones=(80, 120)),
        search=SearchConfig(epochs=30, group_size=4),
        finetune=FinetuneConfig(epochs=200, lr=0.1, milestones=(80, 120)),
    )


def _imagenet(model: str, target: str, *, group_size: int, epochs: int, decay: float) -> TrainConfig:
    """The same paper: published weights, 10 epochs of search, fine-tuning from 0.01 along a cosine."""
    return TrainConfig(
        model=f"torchvision:{model}",
        pretrained=True,
        data="imagenet",
        target=target,
        batch_size=256,
        pretrain=PretrainConfig(epochs=0),
        search=SearchConfig(epochs=10, group_size=group_size, weight_decay=decay),
        finetune=FinetuneConfig(epochs=epochs, lr=0.01, weight_decay=decay),
    )


RECIPES: dict[str, TrainConfig] = {
    "digits-resnet20": TrainConfig(
        model="resnet20",
        data="digits",
        batch_size=64,
        pretrain=PretrainConfig(epochs=30, lr=0.05),
        search=SearchConfig(epochs=10),
        finetune=FinetuneConfig(epochs=40),
    ),
    "fashion-mnist-resnet20": TrainConfig(
        model="resnet20",
        data="fashion-mnist",
        pretrain=PretrainConfig(epochs=30),
        search=SearchConfig(epochs=6),
        finetune=FinetuneConfig(epochs=34),
    ),
    "cifar100-resnet20": _cifar100("resnet20", "66x"),
    "cifar100-resnet56": _cifar100("resnet56", "67x"),
    "imagenet-resnet18": _imagenet("resnet18", "57x", group_size=16, epochs=90, decay=1e-4),
    "imagenet-resnet50": _imagenet("resnet50", "57x", group_size=16, epochs=90, decay=1e-4),
    "imagenet-mobilenetv2": _imagenet("mobilenet_v2", "28x", group_size=8, epochs=150, decay=4e-5),
    "imagenet-mobilenetv3": _imagenet("mobilenet_v3_large", "28x", group_size=8, epochs=150, decay=4e-5),
}


def paper(config: TrainConfig) -> TrainConfig:
    """`config` as Liu et al. (TPAMI 2023) search: their grids, metrics, thresholds and fixed lambda.

    Their 8-bit weights take nine bits, so such a network is for comparison and not for an INT8 engine. Thresholds are
    trained by Adam on errors in units of the grid: the paper does not give their optimizer or rate.
    """
    return replace(
        config,
        grid="paper",
        target="none",
        calibrate=replace(config.calibrate, method="percentile"),
        search=replace(
            config.search,
            metric="error",
            units="grid",
            pruning_metric="norm",
            threshold_start=0.0,
            lambda_=0.02,
            alternate=True,
            settle=(0.9, 1.0),
            quantize_residual=False,
        ),
    )


PRESETS: dict[str, Callable[[TrainConfig], TrainConfig]] = {"paper": paper}
