"""Work of several processes that train together: by rank 0 for all ranks, or by all ranks at once.

Every process (rank) holds the whole network and a part of every batch. Rank 0 alone reads and writes the run directory
and prints; its results reach other ranks through memory, so no shared disk is needed. A single process is rank 0 of 1:
all methods then return at once, and callers need no special case.

Fabric's own reductions wait at a barrier first, which would stall a GPU every step, and Fabric gathers tensors alone.
"""

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sbs_train.contract.errors import SbsError
from sbs_train.inputs.state import load_state

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Collective operations; all ranks call them in the same order, and each call waits for all ranks."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    """Rank of this process among the ranks of this machine."""
    device: torch.device | None = None
    """Device of exchanged tensors; None for a single process."""
    silent: bool = False
    """Whether the other ranks exit silently where a command fails: rank 0 prints the error, and its exit code is the
    run's. In the user's own loop every rank raises it."""

    @property
    def first(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, equal to the bit on each rank."""
        if self.world == 1:
            return tensor
        total = tensor.detach().to(self.device, copy=True)
        dist.all_reduce(total)
        return total.to(tensor.device)

    @torch.no_grad()
    def average_(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of one type by their means over all ranks, in place and in one message."""
        if self.world == 1 or not tensors:
            return
        flat = self.sum(torch.cat([tensor.detach().flatten() for tensor in tensors])) / self.world
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    @torch.no_grad()
    def share(self, model: nn.Module) -> None:
        """Give every rank the state that the model has on rank 0."""
        if self.world > 1:
            load_state(model, self.on_first(lambda: {name: value.cpu() for name, value in model.state_dict().items()}))

    def on_first(self, work: Callable[[], T]) -> T:
        """The result of `work`, which rank 0 alone runs. If `work` fails, the other ranks end as by `stop`."""
        if self.world == 1:
            return work()
        message: list[tuple[T] | None] = [None]
        try:
            if self.first:
                message = [(work(),)]
        finally:
            dist.broadcast_object_list(message, 0, device=self.device)
        if message[0] is None:
            self.stop(SbsError("rank 0 failed; its own error says why"))
        return message[0][0]

    def each(self, work: Callable[[], T]) -> T:
        """The result of `work` on this rank; one rank of every machine runs it first, and downloads for the others.

        Raises:
            SbsError: on rank 0, the error of the first rank whose work failed. Other ranks end as by `stop`.
        """
        if self.world == 1:
            return work()
        results: list[T] = []
        for turn in (self.local_rank == 0, self.local_rank != 0):
            problem = None
            try:
                results += [work()] if turn else []
            except SbsError as error:
                problem = str(error) if self.first else f"{error} (rank {self.rank} on {socket.gethostname()})"
            problems: list[str | None] = [None] * self.world
            dist.all_gather_object(problems, problem)
            if found := next(filter(None, problems), None):
                self.stop(SbsError(found))
        return results[0]

    def leave(self) -> None:
        """End the process group; the last call of a run."""
        if self.world > 1:
            dist.barrier()
            dist.destroy_process_group()

    def stop(self, error: SbsError) -> NoReturn:
        """End this rank; all ranks call this. Rank 0 raises the error, and so do the others unless they are silent."""
        raise SystemExit(0) if self.silent and not self.first else error


ALONE = Ranks()
"""The ranks of a single process."""


def ranks_of(device: torch.device) -> Ranks:
    """This process among those that torch.distributed has joined; ALONE without them."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return ALONE
    return Ranks(
        rank=dist.get_rank(),
        world=dist.get_world_size(),
        local_rank=dist.get_node_local_rank(fallback_rank=dist.get_rank()),
        device=device if dist.get_backend() == "nccl" else torch.device("cpu"),
    )
