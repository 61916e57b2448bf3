"""What every stage of a run shares: settings, data, device, progress and logs."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning_fabric import Fabric
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from sbs_train.contract import rundir
from sbs_train.contract.config import TrainConfig
from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import ModelSpec
from sbs_train.contract.rundir import RunDir
from sbs_train.inputs.data import Dataset


@dataclass(kw_only=True)
class Context:
    """One run. Progress and logs go to stderr; scalars to TensorBoard."""

    run: RunDir
    config: TrainConfig
    data: Dataset
    fabric: Fabric
    writer: SummaryWriter
    console: Console = field(default_factory=lambda: Console(stderr=True, highlight=False))

    @property
    def model_spec(self) -> ModelSpec:
        return ModelSpec(name=self.config.model, width=self.config.width, num_classes=self.data.num_classes)

    def log(self, message: str) -> None:
        """One line for people."""
        self.console.print(message, soft_wrap=True)

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """A progress bar with the time left; silent where stderr is not a terminal."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.console, disable=not self.console.is_terminal) as progress:
            yield progress

    def record(self, stage: str, metrics: dict[str, Any], seconds: float) -> None:
        """Add a stage's accuracy and duration to metrics.json."""
        path = self.run.metrics
        value = rundir.read_json(path) if path.is_file() else {}
        value[stage] = metrics
        value.setdefault("seconds", {})[stage] = round(seconds, 3)
        rundir.write_json(path, value)


class Stopwatch:
    """Wall-clock seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start


def check_device(config: TrainConfig) -> None:
    """Refuse a device that is not there, before anything is written."""
    if config.device not in ("auto", "cpu", "cuda"):
        raise SbsError(f"--device {config.device}: choose auto, cpu or cuda")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise SbsError("--device cuda: torch sees no GPU here; use --device cpu, or install a CUDA build of torch")


def open_context(run: RunDir, config: TrainConfig, data: Dataset) -> Context:
    """Start the device and the logs of a run."""
    fabric = Fabric(accelerator=config.device, devices=1)
    fabric.launch()
    return Context(
        run=run,
        config=config,
        data=data.to(fabric.device),
        fabric=fabric,
        writer=SummaryWriter(str(run.root)),
    )
