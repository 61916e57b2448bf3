"""The named recipes, one value of `TrainConfig` each, and presets that change one."""

from collections.abc import Callable
from dataclasses import replace

from sbs_train.contract.config import FinetuneConfig, PretrainConfig, SearchConfig, TrainConfig

DEFAULT_RECIPE = "digits-resnet20"

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
