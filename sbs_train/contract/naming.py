"""Names that a run's settings give to things on disk."""

import re
from pathlib import Path

from sbs_train.contract.config import TrainConfig


def absolute_model(model: str) -> str:
    """A model's name with an absolute path, so that it works from every directory."""
    file, _, function = model.rpartition(":")
    return f"{Path(file).resolve()}:{function}" if file.endswith(".py") else model


def plain_name(config: TrainConfig) -> str:
    """Data and model as part of a file name, without paths and URLs."""
    model = config.model.rpartition("/")[2]
    return re.sub(r"[^\w.]+", "-", f"{config.data.partition(':')[0]}-{model}")
