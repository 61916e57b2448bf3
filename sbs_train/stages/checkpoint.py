"""Checkpoints: the state of a stage on disk. A kill at any moment costs only the steps since the last checkpoint.

A new file is written beside the last checkpoint, read back, and only then replaces it.
"""

import hashlib
import io
import math
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sbs_train.contract import rundir
from sbs_train.contract.bounds import CHECKPOINT_BYTES
from sbs_train.contract.errors import SbsError
from sbs_train.inputs.state import load_state
from sbs_train.inputs.tensors import fitting_state
from sbs_train.stages.context import Context, Stopwatch

_SEAL = b"\nsha256 "
_SEAL_BYTES = len(_SEAL) + 64 + 1
_PROBLEMS = (LookupError, TypeError, ValueError, RuntimeError, AttributeError, OverflowError)
"""Errors that loading wrong values raises; they include SbsError, a ValueError."""


class Stateful(Protocol):
    """An object with a state that a checkpoint can hold."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


@dataclass(kw_only=True)
class Position:
    """How far a stage has come; equal on every rank."""

    epoch: int = 0
    """Finished epochs."""
    step: int = 0
    """Finished steps of the current epoch."""
    totals: dict[str, Tensor] = field(default_factory=dict)
    """Sums of the logged values over these steps."""


class Checkpoint:
    """The checkpoint of one stage, `checkpoints/STAGE.pt`: rank 0 reads and writes it."""

    def __init__(self, ctx: Context, stage: str, parts: Mapping[str, Stateful], settings: str) -> None:
        """`parts` are the objects whose state is kept, by name; `settings` hashes everything the stage depends on."""
        self.ctx, self.parts, self.settings = ctx, parts, settings
        self.path = ctx.run.checkpoints / f"{stage}.pt"
        self.earlier_s = 0.0
        """Seconds that earlier sessions spent on the stage."""
        self._watch, self._since_save = Stopwatch(), Stopwatch()

    def resume(self) -> Position:
        """Restore all parts from a checkpoint with these settings, if one exists; returns the position to go on from.

        Raises:
            SbsError: the checkpoint is damaged, or of another version.
        """
        found = self.ctx.ranks.on_first(self._read)
        if found is None:
            return Position()
        try:
            _check_stored(found, self.parts)
            for name, part in self.parts.items():
                state = found["state"][name]
                load_state(part, state) if isinstance(part, nn.Module) else part.load_state_dict(state)
            position = Position(epoch=found["epoch"], step=found["step"], totals=found["totals"])
            self.earlier_s = found["seconds"]
        except _PROBLEMS as error:
            problem = str(error).partition("\n")[0][:300]
            self.ctx.ranks.stop(
                SbsError(
                    f"{self.path} is damaged, or of another version of sbs ({problem}); delete it to repeat the stage"
                )
            )
        return position

    @property
    def due(self) -> bool:
        """Whether the last checkpoint is older than `--checkpoint-minutes`; False on all ranks but 0."""
        minutes = self.ctx.config.checkpoint_minutes
        return self.ctx.ranks.first and minutes > 0 and self._since_save.seconds >= 60 * minutes

    def save(self, position: Position) -> None:
        """Write the checkpoint; on rank 0 only, since all ranks have equal states.

        Raises:
            SbsError: it cannot be written; the last checkpoint is kept.
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
        # Into memory first: torch's error for a full disk does not say that the disk is full.
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
        except Exception as error:  # torch.load may raise anything for damaged bytes
            raise SbsError(f"{self.path} is damaged ({type(error).__name__}); delete it to repeat the stage") from error
        return found if isinstance(found, dict) and found.get("settings") == self.settings else None


def write_checked(path: Path, content: memoryview | bytes, check: Callable[[bytes], object] | None = None) -> None:
    """Write a file, read it back, and replace the last file if the bytes are equal and `check` accepts them.

    Raises:
        SbsError: the disk is full, or returns other bytes; the last file is kept.
    """
    with rundir.atomic_path(path) as temporary:
        temporary.write_bytes(content)
        written = rundir.read_bytes(temporary, CHECKPOINT_BYTES)
        if written != content:
            raise SbsError(f"{path}: the disk does not return what was written; check it, and repeat with --resume")
        if check is not None:
            check(written)


def _seal(content: memoryview) -> bytes:
    """The last line of a checkpoint: the hash of the bytes before it. So one rename replaces both."""
    return _SEAL + hashlib.sha256(content).hexdigest().encode() + b"\n"


def _load(content: bytes) -> dict[str, Any]:
    """The values of a checkpoint; its hash is checked before anything is read.

    Raises:
        SbsError: the hash does not match.
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


def _check_stored(found: Any, parts: Mapping[str, Any]) -> None:
    """Raise ValueError for a checkpoint of another form than `parts`, before any value is used."""
    if not isinstance(found, dict) or not isinstance(found.get("state"), dict):
        raise ValueError("it holds no state")
    for name in ("epoch", "step"):
        if type(found.get(name)) is not int or found[name] < 0:
            raise ValueError(f"{name} is no count")
    _check(found.get("seconds"), 0.0, "seconds")
    _check(found.get("totals"), {}, "totals")
    if any(not isinstance(value, Tensor) or value.dim() for value in found["totals"].values()):
        raise ValueError("totals are not numbers")
    for name, part in parts.items():
        state = found["state"].get(name)
        if not isinstance(state, dict):
            raise ValueError(f"{name} is missing")
        if isinstance(part, nn.Module):
            _check(state, {}, name)
            fitting_state(name, state, part.state_dict())
        elif isinstance(part, Optimizer):
            _check_optimizer(state, part, name)
        else:
            _check(state, part.state_dict(), name)


def _check_optimizer(state: dict[str, Any], optimizer: Optimizer, name: str) -> None:
    own = optimizer.state_dict()
    _check(state.get("param_groups"), own["param_groups"], f"{name}.param_groups")
    for group, expected in zip(state["param_groups"], own["param_groups"], strict=True):
        if group["params"] != expected["params"]:
            raise ValueError(f"{name} is for other parameters")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    _check(state.get("state"), {}, f"{name}.state")
    for index, moments in state["state"].items():
        for key, value in moments.items():
            shape = parameters[index].shape
            if value is not None and (not isinstance(value, Tensor) or value.shape not in ((), shape)):
                raise ValueError(f"{name}: {key} of parameter {index} has another shape")


def _check(found: Any, like: Any, where: str) -> None:
    """ValueError for values of another form than `like`, and for tensors and numbers that are not finite.

    Where `like` is empty or None, `found` may hold any plain values.
    """
    if isinstance(like, Tensor):
        fits = isinstance(found, Tensor) and (found.shape, found.dtype) == (like.shape, like.dtype)
    elif isinstance(like, dict):
        fits = isinstance(found, dict) and (not like or found.keys() == like.keys())
    elif isinstance(like, list | tuple):
        fits = isinstance(found, list | tuple)
    elif isinstance(like, bool | str):
        fits = type(found) is type(like)
    else:
        fits = like is None or (isinstance(found, int | float) and not isinstance(found, bool))
    if not fits:
        raise ValueError(f"{where} has another form")
    if isinstance(found, Tensor):
        if found.numel() * found.element_size() > found.untyped_storage().nbytes():
            raise ValueError(f"{where} claims more values than it has")
        if found.is_floating_point() and not found.isfinite().all():
            raise ValueError(f"{where} holds NaN or infinity")
    elif isinstance(found, dict):
        for key, value in found.items():
            _check(value, like.get(key) if like else None, f"{where}.{key}")
    elif isinstance(found, list | tuple):
        for index, value in enumerate(found):
            _check(value, like[min(index, len(like) - 1)] if like else None, f"{where}.{index}")
    elif isinstance(found, float) and not math.isfinite(found) and (like is None or math.isfinite(like)):
        raise ValueError(f"{where} is not finite")
