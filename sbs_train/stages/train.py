"""Runs of a model and a task by name: what `sbs-train` gives to `compress`."""

from pathlib import Path

from torch import nn

from sbs_train.contract.config import TrainConfig, require_named
from sbs_train.stages.context import check_device, open_fabric
from sbs_train.stages.named import model_for
from sbs_train.stages.pretrain import pretrain
from sbs_train.stages.run import Run, compress, in_run
from sbs_train.tasks.load import task_of
from sbs_train.tasks.protocol import Task


def train(config: TrainConfig, out: Path, *, fresh: bool = False) -> Run:
    """Run every stage in `out`, with the model and the task that the settings name; see `compress`.

    Raises:
        SbsError: an unknown model or task, or for the reasons that `compress` names.
    """
    model, task = _made(config)
    return compress(model, task, target=config.target, out=out, config=config, by_name=True, fresh=fresh)


def train_float(config: TrainConfig, out: Path) -> None:
    """Run pretraining alone, or finish it: float weights that several runs start from.

    Raises:
        SbsError: for the reasons that `train` names.
    """
    in_run(*_made(config), config, out, pretrain)


def _made(config: TrainConfig) -> tuple[nn.Module, Task]:
    """The model and the task; one process of every machine makes them first, since that may download data."""
    config.check()
    require_named(config, "config.json")
    check_device(config)
    _, ranks = open_fabric(config)

    def made() -> tuple[nn.Module, Task]:
        task = task_of(config)
        return model_for(config, task), task

    return ranks.each(made)
