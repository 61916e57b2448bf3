"""The batches of one process: which of a task's batches a step takes, in an order that a resumed run repeats."""

import random
import zlib
from collections.abc import Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from lightning_fabric.utilities import move_data_to_device
from torch import Tensor

from sbs_train.contract.errors import SbsError
from sbs_train.example import Example
from sbs_train.tasks.protocol import Batch, Divided, Metrics, Model, Share, Task, measure_of


@dataclass(frozen=True, kw_only=True)
class Feed:
    """A task's batches for one rank, in micro-batches. One kind of task divides its batches itself (`Divided`)."""

    task: Task
    accumulate: int = 1
    """Micro-batches of a step."""
    share: Share = field(default_factory=Share)
    _counted: list[int] = field(default_factory=list)

    def shared(self, share: Share) -> "Feed":
        """The feed of one rank."""
        return replace(self, task=self.task.shared(share) if isinstance(self.task, Divided) else self.task, share=share)

    @property
    def whole(self) -> "Feed":
        """The feed of a single process on the same device, which gets all batches."""
        return self.shared(Share(device=self.share.device))

    @property
    def steps_per_epoch(self) -> int:
        """Steps of all ranks in one epoch, at least 1."""
        if isinstance(self.task, Divided):
            return self.task.steps_per_epoch()
        if not self._counted:
            epoch = self.task.train_batches(0)
            counted = islice(self._epoch(0), UNCOUNTED + 1)
            self._counted.append(len(epoch) if isinstance(epoch, Sized) else sum(1 for _ in counted))
            if not isinstance(epoch, Sized) and self._counted[0] > UNCOUNTED:
                raise SbsError(
                    f"{_name(self.task)}.train_batches gives more than {UNCOUNTED} batches, perhaps without an end; it "
                    f"must give one epoch, or something with a length (len)"
                )
        return max(1, self._counted[0] // self._stride)

    def steps(self, seed: int, steps: int, *, first: int = 0) -> Iterator[Sequence[Batch]]:
        """This rank's micro-batches of the steps `first` to `steps`, in an order that depends on `seed` alone."""
        if isinstance(self.task, Divided):
            for batch in self.task.batches(seed, steps, first=first):
                yield self.task.parts(batch, self.accumulate)
            return
        mine = islice(self._endless(seed), first * self._stride + self.share.rank, None, self.share.world)
        for _ in range(first, steps):
            yield [move_data_to_device(batch, self.share.device) for batch in islice(mine, self.accumulate)]

    def examples(self, seed: int, batches: int) -> Iterator[Example]:
        """What the network gets of this rank's part of so many training batches."""
        if isinstance(self.task, Divided):
            found: Iterator[Batch] = self.task.batches(seed, batches)
        else:
            found = (batch for (batch,) in replace(self, accumulate=1).steps(seed, batches))
        return (Example.of(self.task.inputs(batch)) for batch in found)

    def example(self, samples: int) -> Batch:
        """A batch to try a network on: of so many samples where the task can make one, else its first."""
        if isinstance(self.task, Divided):
            return self.task.example(samples)
        return next(iter(self.steps(0, 1)))[0]

    def samples(self, batch: Batch) -> int:
        """Number of samples of a batch: axis 0 of the first tensor that the network gets."""
        return Example.of(self.task.inputs(batch)).samples

    def golden(self) -> Iterator[tuple[Example, Tensor | None]]:
        """What the network gets of test samples, each with what the task's `golden` says of it; of training batches
        for a task without."""
        found = getattr(self.task, "golden", None)
        if found is None:
            return ((example, None) for example in self.examples(0, self.steps_per_epoch * self._stride))
        return ((Example.of(inputs), truth) for inputs, truth in found())

    def sample_losses(self, model: Model, batches: int | None) -> Tensor | None:
        """`loss_N` of this rank's samples of the validation split; None for a task that has no loss by sample."""
        return self.task.sample_losses(model, batches) if isinstance(self.task, Divided) else None

    @torch.no_grad()
    def evaluate(self, model: Model, split: str) -> Metrics:
        """The task's metrics, the score first; SbsError for what is no metric."""
        given: object = self.task.evaluate(model, split)
        if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
            raise SbsError(f'{_name(self.task)}.evaluate must return metrics by name, such as {{"score": 0.9}}')
        found: dict[str, float] = dict(given)
        for name, value in found.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                kind = type(value).__name__
                raise SbsError(f"{_name(self.task)}.evaluate: {name} is a {kind}, not a float; give float(value)")
        measure_of(found)  # refuses metrics without a score
        return found

    @property
    def _stride(self) -> int:
        """Batches of one step of all ranks, for a task that does not divide them."""
        return self.share.world * self.accumulate

    def _endless(self, seed: int) -> Iterator[Batch]:
        """One epoch after the other."""
        epoch = 0
        while True:
            yield from self._epoch(seed if not epoch else zlib.crc32(f"{seed}/{epoch}".encode()))
            epoch += 1

    def _epoch(self, seed: int) -> Iterator[Batch]:
        """The batches of an epoch, each drawn with the global generators seeded by (seed, index of the batch).

        So a shuffling loader, or augmentation without a generator of its own, repeats after a run was resumed.
        """
        with seeded(seed):
            epoch = self.task.train_batches(seed)
            try:
                batches = iter(epoch)
            except TypeError as error:
                kind = type(epoch).__name__
                raise SbsError(f"{_name(self.task)}.train_batches returns a {kind}; it must return batches") from error
        index = 0
        while True:
            with seeded(zlib.crc32(f"{seed}/batch {index}".encode())):
                batch = next(batches, _END)
            if batch is _END:
                break
            yield batch
            index += 1
        if not index:
            raise SbsError(f"{_name(self.task)}.train_batches gave no batch; it must give one or more for every seed")


_END = object()
UNCOUNTED = 100_000
"""Most batches that are counted one by one."""


def _name(task: Task) -> str:
    return type(task).__name__


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the generators of torch's CPU, NumPy and Python for the block, and restore them afterwards."""
    states: tuple[Any, ...] = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
