"""Checkpoints: where a stage stands, on disk, so that a kill at any moment costs the steps since and nothing else.

A file is written beside the last one, read back, and only then takes its place.
"""

import hashlib
import io
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sbs_train.contract import rundir
from sbs_train.contract.bounds import CHECKPOINT_BYTES
from sbs_train.contract.errors import SbsError
from sbs_train.inputs.state import load_state
from sbs_train.stages.context import Context, Stopwatch
from sbs_train.stages.stored import PROBLEMS, check_stored

_SEAL = b"\nsha256 "
_SEAL_BYTES = len(_SEAL) + 64 + 1


class Stateful(Protocol):
    """What a checkpoint holds."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


@dataclass(kw_only=True)
class Position:
    """How far a stage has come; the same on every rank."""

    epoch: int = 0
    """Finished epochs."""
    step: int = 0
    """Finished steps of the epoch that follows them."""
    totals: dict[str, Tensor] = field(default_factory=dict)
    """Sums over those steps of what they logged."""


class Checkpoint:
    """The checkpoint of one stage, `checkpoints/STAGE.pt`: rank 0 reads and writes it."""

    def __init__(self, ctx: Context, stage: str, parts: Mapping[str, Stateful], settings: str) -> None:
        """`parts` is what it holds, by name; `settings` hashes everything the stage depends on."""
        self.ctx, self.parts, self.settings = ctx, parts, settings
        self.path = ctx.run.checkpoints / f"{stage}.pt"
        self.earlier_s = 0.0
        """What earlier sessions spent on the stage."""
        self._watch, self._since_save = Stopwatch(), Stopwatch()

    def resume(self) -> Position:
        """Take everything back to the checkpoint, if there is one of these settings; says where to go on.

        Raises:
            SbsError: it is damaged, or of another version.
        """
        found = self.ctx.ranks.on_first(self._read)
        if found is None:
            return Position()
        try:
            check_stored(found, self.parts)
            for name, part in self.parts.items():
                state = found["state"][name]
                load_state(part, state) if isinstance(part, nn.Module) else part.load_state_dict(state)
            position = Position(epoch=found["epoch"], step=found["step"], totals=found["totals"])
            self.earlier_s = found["seconds"]
        except PROBLEMS as error:
            problem = str(error).partition("\n")[0][:300]
            self.ctx.ranks.stop(
                SbsError(
                    f"{self.path} is damaged, or of another version of sbs ({problem}); delete it to repeat the stage"
                )
            )
        return position

    @property
    def due(self) -> bool:
        """Whether the last one is older than `--checkpoint-minutes`; for rank 0, never on the others."""
        minutes = self.ctx.config.checkpoint_minutes
        return self.ctx.ranks.first and minutes > 0 and self._since_save.seconds >= 60 * minutes

    def save(self, position: Position) -> None:
        """Write the checkpoint, on rank 0: the others have the same state.

        Raises:
            SbsError: it cannot be written; the last one is kept.
        """
        if not self.ctx.ranks.first:
            return
        value = {
            "settings": self.settings,
            "epoch": position.epoch,
            "step": position.step,
            "totals": position.totals,
            "seconds": self.earlier_s + self._watch.seconds,
            "state": {name: part.state_dict() for name, part in self.parts.items()},
        }
        # Into memory first: torch tells a full disk by an error of its own, which does not say so.
        buffer = io.BytesIO()
        torch.save(value, buffer)
        buffer.write(_seal(buffer.getbuffer()))
        write_checked(self.path, buffer.getbuffer(), check=_load)
        self._since_save = Stopwatch()

    def _read(self) -> dict[str, Any] | None:
        if not rundir.is_file(self.path):
            return None
        try:
            found: Any = _load(rundir.read_bytes(self.path, CHECKPOINT_BYTES))
        except SbsError as error:
            raise SbsError(f"{self.path}: {error}; delete it to repeat the stage") from error
        except Exception as error:  # torch.load raises whatever the damaged bytes lead to
            raise SbsError(f"{self.path} is damaged ({type(error).__name__}); delete it to repeat the stage") from error
        return found if isinstance(found, dict) and found.get("settings") == self.settings else None


def write_checked(path: Path, content: memoryview | bytes, check: Callable[[bytes], object] | None = None) -> None:
    """Write a file, read it back, and let it replace the last one if the bytes are the same and `check` takes them.

    Raises:
        SbsError: the disk is full, or does not hold what was written; the last file is kept.
    """
    with rundir.atomic_path(path) as temporary:
        temporary.write_bytes(content)
        written = rundir.read_bytes(temporary, CHECKPOINT_BYTES)
        if written != content:
            raise SbsError(f"{path}: the disk does not return what was written; check it, and repeat with --resume")
        if check is not None:
            check(written)


def _seal(content: memoryview) -> bytes:
    """The last line of a checkpoint: the hash of what stands before it. A second file could not be renamed with it."""
    return _SEAL + hashlib.sha256(content).hexdigest().encode() + b"\n"


def _load(content: bytes) -> dict[str, Any]:
    """What a checkpoint holds; its bytes are hashed before anything reads them.

    Raises:
        SbsError: they are not what was written.
    """
    end = len(content) - _SEAL_BYTES
    if content[max(0, end) : end + len(_SEAL)] != _SEAL:
        raise SbsError("it is damaged: it does not end in its hash, or an earlier version wrote it")
    if content[end:] != _seal(memoryview(content)[:end]):
        raise SbsError("it is damaged: its hash does not match")
    with zipfile.ZipFile(io.BytesIO(content[:end])) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise SbsError("it is damaged: its tensors are compressed")  # a few bytes may then hold gigabytes
    value: dict[str, Any] = torch.load(io.BytesIO(content[:end]), map_location="cpu", weights_only=True)
    return value
