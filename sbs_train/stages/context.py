"""Shared by all stages of a run: settings, data, device, ranks, progress and logs."""

import inspect
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]
from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]
from torch.nn.parallel import DistributedDataParallel
from torch.utils.tensorboard.summary import scalar

from sbs_train.contract import rundir
from sbs_train.contract.config import TrainConfig
from sbs_train.contract.errors import SbsError
from sbs_train.contract.launch import this_launch
from sbs_train.contract.rundir import RunDir
from sbs_train.stages.pace import Pace
from sbs_train.stages.ranks import ALONE, Ranks
from sbs_train.tasks.feed import Feed
from sbs_train.tasks.protocol import Share, Task


class Curves:
    """Curves for TensorBoard in a new file, written at once: a full disk ends the curves, not the training.

    Raises:
        OSError: the file cannot be written; any method may raise this.
    """

    def __init__(self, directory: Path) -> None:
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._file = (directory / name).open("xb")
        self._records = RecordWriter(self._file)
        self._write(Event(file_version="brain.Event:2"))
        self._file.flush()

    def add(self, values: dict[str, float], step: int) -> None:
        """Write one point of each named curve."""
        for name, value in values.items():
            self._write(Event(summary=scalar(name, value), step=step))  # type: ignore[no-untyped-call]
        self._file.flush()

    def close(self) -> None:
        """Flush and close the file."""
        self._file.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())


@dataclass(kw_only=True)
class Context:
    """Settings and services of one run. On rank 0, logs go to stderr and scalars to TensorBoard."""

    run: RunDir
    config: TrainConfig
    feed: Feed
    """This rank's batches."""
    fabric: Fabric
    curves: Curves | None
    """TensorBoard curves; None on all ranks but 0, and where they cannot be written."""
    ranks: Ranks = ALONE
    console: Console = field(default_factory=lambda: Console(stderr=True, highlight=False))

    def log(self, message: str) -> None:
        """Print one line for people, on rank 0."""
        self.console.print(message, soft_wrap=True, markup=False)

    @contextmanager
    def progress(self, name: str, total: int, done: int) -> Iterator[Callable[[], None]]:
        """Shows how far a stage of `total` steps is, `done` of them before: a bar, or lines without a terminal.

        Yields a function to call after every step.
        """
        if not self.console.is_terminal:
            yield Pace(name, total, done, self.log).advance
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.console, disable=self.console.quiet) as progress:
            task = progress.add_task(name, total=total, completed=done)
            yield lambda: progress.advance(task)

    def scalars(self, values: dict[str, float], epoch: int) -> None:
        """One point of each named curve."""
        if self.curves is not None:
            try:
                self.curves.add(values, epoch)
            except OSError as error:
                self.log(no_curves(self.run, error))
                self.close()

    def close(self) -> None:
        """Close the logs without an error for a full disk, which was reported before."""
        if self.curves is not None:
            with suppress(OSError):
                self.curves.close()
            self.curves = None


def no_curves(run: RunDir, error: OSError) -> str:
    """A message that curves cannot be written, and that training goes on."""
    return f"no more curves for TensorBoard in {run.root} ({error.strerror or error}); training goes on"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One of the four stages of a run."""

    name: str
    """Name in logs and of the checkpoint, such as pretrain."""
    output: str
    """Name of the stage's files and metrics, such as fp32."""
    made_from: Mapping[str, str]
    """SHA-256 of all inputs of the output, by name."""

    @property
    def settings(self) -> str:
        """SHA-256 of the whole `made_from`, kept in checkpoints."""
        return rundir.hash_of(dict(self.made_from))


class Stopwatch:
    """Wall-clock seconds since the stopwatch was made."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start


def check_device(config: TrainConfig) -> None:
    """SbsError for a missing device, or for settings it does not support."""
    cuda = torch.cuda.is_available()
    if config.device not in ("auto", "cpu", "cuda"):
        raise SbsError(f"--device {config.device}: choose auto, cpu or cuda")
    if config.device == "cuda" and not cuda:
        raise SbsError("--device cuda: torch sees no GPU here; use --device cpu, or install a CUDA build of torch")
    if config.sync_batchnorm and (config.device == "cpu" or not cuda):
        raise SbsError("--sync-batchnorm: torch synchronises BatchNorm between GPUs only; leave it out on the CPU")
    local = this_launch().local_world
    if config.device != "cpu" and cuda and torch.cuda.device_count() < local:
        raise SbsError(
            f"torchrun started {local} processes here, torch sees {torch.cuda.device_count()} GPUs; "
            f"give --nproc-per-node the number of GPUs"
        )


def check_batch(config: TrainConfig, batch_size: int) -> None:
    """SbsError for a batch that processes and micro-batches cannot split evenly."""
    launch = this_launch()
    parts = launch.world * config.accumulate
    if batch_size % parts:
        raise SbsError(
            f"--batch-size {batch_size} does not divide among {launch.world} processes times --accumulate "
            f"{config.accumulate}; choose a multiple of {parts}, such as {-(-batch_size // parts) * parts}"
        )


def open_fabric(config: TrainConfig) -> tuple[Fabric, Ranks]:
    """Start the device, and join the other processes that torchrun started."""
    launch = this_launch()
    cuda = config.device != "cpu" and torch.cuda.is_available()
    plugins: list[Any] = [_Bf16("bf16-mixed", "cuda" if cuda else "cpu")] if config.precision == "bf16" else []
    if launch.world == 1:
        fabric = Fabric(accelerator=config.device, devices=1, plugins=plugins)
    else:
        fabric = Fabric(
            accelerator=config.device,
            devices=launch.local_world,
            num_nodes=launch.nodes,
            strategy=DDPStrategy(**_own_buffers()),
            plugins=[TorchElasticEnvironment(), *plugins],
        )
    fabric.launch()
    return fabric, Ranks(
        rank=launch.rank, world=launch.world, local_rank=launch.local_rank, device=fabric.device, silent=True
    )


def _own_buffers() -> dict[str, Any]:
    """DDP arguments that stop the broadcast of rank 0's buffers: `Descent` averages the statistics of all ranks."""
    renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters  # since torch 2.14
    return {"forward_sync_buffers" if renamed else "broadcast_buffers": False}


def open_context(run: RunDir, config: TrainConfig, task: Task, opened: tuple[Fabric, Ranks] | None = None) -> Context:
    """Divide the task's batches, and start the logs of a run, on the device that `open_fabric` opened."""
    fabric, ranks = opened or open_fabric(config)
    console = Console(stderr=True, highlight=False, quiet=not ranks.first)
    curves = None
    if ranks.first:
        try:
            curves = Curves(run.root)
        except OSError as error:
            console.print(no_curves(run, error), soft_wrap=True)
    share = Share(device=fabric.device, rank=ranks.rank, world=ranks.world, sum=ranks.sum)
    return Context(
        run=run,
        config=config,
        feed=Feed(task=task, accumulate=config.accumulate).shared(share),
        fabric=fabric,
        curves=curves,
        ranks=ranks,
        console=console,
    )


class _Bf16(MixedPrecision):
    """Autocast to bfloat16; inputs stay in float32, since the first layer's quantizer reads them."""

    def convert_input(self, data: Any) -> Any:
        return data
