"""How `torchrun` started this process, from its environment variables; no torch."""

import os
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Place of this process among the processes of a run; the defaults describe a single process."""

    rank: int = 0
    world: int = 1
    """Processes of the whole run."""
    local_rank: int = 0
    """Rank among the processes of this machine."""
    local_world: int = 1
    """Processes on this machine."""

    @property
    def nodes(self) -> int:
        """Number of machines of the run; each starts `local_world` processes."""
        return self.world // self.local_world


def this_launch() -> Launch:
    """The launch of this process."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return Launch()
    rank, world, local_rank, local_world = (
        int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    )
    return Launch(rank=rank, world=world, local_rank=local_rank, local_world=local_world)
