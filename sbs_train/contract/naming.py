"""Names that a run's settings give to things on disk."""

import re
from pathlib import Path

from sbs_train.contract.config import TrainConfig


def absolute_model(model: str) -> str:
    """A model's name that means the same in every directory: the run is exported from elsewhere."""
    file, _, function = model.rpartition(":")
    return f"{Path(file).resolve()}:{function}" if file.endswith(".py") else model


def plain_name(config: TrainConfig) -> str:
    """Data and model as part of a file name: without the paths and URLs that they may hold."""
    model = config.model.rpartition("/")[2]
    return re.sub(r"[^\w.]+", "-", f"{config.data.partition(':')[0]}-{model}")
