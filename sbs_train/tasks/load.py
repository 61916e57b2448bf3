"""Tasks by name: `--task classification|segmentation`, or `path/to/file.py:factory`."""

import inspect
from collections.abc import Sequence
from pathlib import Path

from sbs_train.contract.config import TRAIN_FIELDS, TrainConfig
from sbs_train.contract.errors import SbsError
from sbs_train.contract.trust import is_code
from sbs_train.inputs.data import dataset_of, masks_of
from sbs_train.inputs.userfile import load_file
from sbs_train.tasks.classification import Classification
from sbs_train.tasks.protocol import Task, as_task
from sbs_train.tasks.segmentation import Segmentation


def task_of(config: TrainConfig) -> Task:
    """The task that a run's settings name.

    A function in a user's file gets the settings that its parameters name, such as `data_dir` or `batch_size`.

    Raises:
        SbsError: the task is unknown, its data are missing, or the function fails or returns no task.
    """
    if config.task == "classification":
        return Classification(
            data=dataset_of(config),
            batch_size=config.batch_size,
            label_smoothing=config.label_smoothing,
            mixup=config.mixup,
        )
    if config.task == "segmentation":
        _refuse_unused(config, ("mixup",))
        return Segmentation(data=masks_of(config), batch_size=config.batch_size, label_smoothing=config.label_smoothing)
    if is_code(config.task):
        return _from_file(config)
    raise SbsError(f"--task {config.task}: choose classification, segmentation, or path/to/file.py:factory")


def _refuse_unused(config: TrainConfig, names: Sequence[str]) -> None:
    """SbsError for a setting that the task would not heed."""
    for name in names:
        if getattr(config, name):
            raise SbsError(f"--{name.replace('_', '-')}: --task {config.task} does not know it; leave it out")


def _from_file(config: TrainConfig) -> Task:
    file, _, function = config.task.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise SbsError(f"--task {config.task}: there is no file {file}; give path/to/file.py:factory")
    try:
        factory = getattr(load_file(path), function, None)
        if not callable(factory):
            raise SbsError(f"--task {config.task}: {file} has no function {function}; it must return a task")
        named = [name for name in inspect.signature(factory).parameters if hasattr(config, name)]
        _refuse_unused(config, [name for name in TRAIN_FIELDS if name not in named])
        task = factory(**{name: getattr(config, name) for name in named})
    except SbsError:
        raise
    except Exception as error:  # a user's code may raise anything
        reason = (str(error).strip() or "no message").splitlines()[0]
        raise SbsError(f"--task {config.task} cannot be made: {type(error).__name__}: {reason}") from error
    return as_task(task, f"--task {config.task} returned")
