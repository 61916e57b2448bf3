"""Worker processes that prepare batches ahead of the training loop."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from sbs_train.contract.errors import SbsError
from sbs_train.inputs.data.samples import Bad, EvalSamples, Sample, TrainSamples

MAX_WORKERS = 16
T = TypeVar("T")
S = TypeVar("S", covariant=True)
B = TypeVar("B")


class Samples(Protocol[S]):
    """Samples by position."""

    def __getitem__(self, position: int) -> S: ...


class Batch(NamedTuple):
    """uint8 images_NCHW and int64 labels_N of the readable images, and the bad images."""

    images: Tensor
    labels: Tensor
    bad: list[Bad]
    missing: int
    """Number of samples without an image."""


def default_workers() -> int:
    """Number of workers: one per usable core except the main process's core; 1 to 16."""
    on_this_machine = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes that share the cores, from torchrun
    return max(1, min(MAX_WORKERS, len(os.sched_getaffinity(0)) // on_this_machine - 1))


def load_batches(
    samples: EvalSamples | TrainSamples, rows: Sequence[range], *, workers: int, pin: bool
) -> Iterator[Batch]:
    """Yield one batch for each of `rows`, in order; see `load`."""
    return load(samples, rows, _collate, workers=workers, pin=pin)


def load(
    samples: Samples[T], rows: Sequence[range], collate: Callable[[list[T]], B], *, workers: int, pin: bool
) -> Iterator[B]:
    """Yield one batch for each of `rows`, in order.

    Args:
        rows: indices of the samples of each batch.
        collate: makes a batch of samples; a function of a module, which workers import.
        workers: processes that read; 0 reads in this process.
        pin: whether batches lie in page-locked memory, from which a GPU copies faster.

    Raises:
        SbsError: a worker died.
    """
    workers = min(workers, len(rows))
    loader: DataLoader[T] = DataLoader(
        samples,  # type: ignore[arg-type]  # anything with __getitem__ will do
        batch_sampler=rows,  # type: ignore[arg-type]  # a range is as good as a list
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin,
        multiprocessing_context=_context() if workers else None,
        worker_init_fn=_leave_interrupts_to_main,
        generator=torch.Generator(),  # otherwise the loader would draw from the global generator
    )
    try:
        yield from loader
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        raise SbsError(
            f"a data worker died ({error}): probably out of memory, or of shared memory (/dev/shm; docker run "
            f"--shm-size); go on with --resume and --workers below {workers}, or with more memory"
        ) from error


def _context() -> "multiprocessing.context.ForkServerContext":
    """The multiprocessing context that forks workers from a clean server process.

    A fork of this process would copy CUDA's state and locks of other threads; spawning would import torch for every
    worker of every epoch. The server imports torch once.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__, "torchvision.transforms.v2"])
    return context


def _leave_interrupts_to_main(_: int) -> None:
    """Ignore Ctrl-C in a worker: the main process, which gets it too, ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = _report


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """An `excepthook` that prints all exceptions except broken connections to the main process.

    A worker sends tensors from a thread (`multiprocessing.resource_sharer`), which would print a traceback if Ctrl-C
    stops the main process while it receives one.
    """
    if not issubclass(kind, EOFError | ConnectionError):
        sys.__excepthook__(kind, error, trace)


def _collate(samples: list[Sample]) -> Batch:
    """A batch of samples; samples without pixels are left out and counted."""
    read = [sample for sample in samples if sample.pixels is not None]
    pixels = [sample.pixels for sample in read if sample.pixels is not None]
    return Batch(
        images=torch.stack(pixels) if pixels else torch.empty(0, dtype=torch.uint8),
        labels=torch.tensor([sample.label for sample in read], dtype=torch.int64),
        bad=[sample.bad for sample in samples if sample.bad is not None],
        missing=len(samples) - len(read),
    )
