"""One recording logger per TensorRT module and process, and errors that quote it.

TensorRT returns None on failure, and gives the reason only to the first logger of a process.
"""

import functools
from types import ModuleType
from typing import Any

from sbs_train.contract.errors import SbsError

QUOTED = 2
"""Number of messages quoted in an error."""
QUOTED_CHARACTERS = 400
_FATAL = ("ERROR", "INTERNAL_ERROR")
_KEPT = (*_FATAL, "WARNING")


@functools.cache
def recording_logger(trt: ModuleType) -> Any:
    """The process's logger for this module; its `records` are (severity, message), errors and warnings only."""

    class RecordingLogger(trt.ILogger):  # type: ignore[misc, name-defined]  # the module is only known at run time
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.records: list[tuple[str, str]] = []

        def log(self, severity: Any, message: str) -> None:
            if severity.name in _KEPT:
                self.records.append((severity.name, message))

    return RecordingLogger()


def refused(trt: ModuleType, mark: int, what: str) -> SbsError:
    """An error that `what` failed, with TensorRT's messages since record number `mark`."""
    records = recording_logger(trt).records[mark:]
    errors = list(dict.fromkeys(" ".join(text.split()) for severity, text in records if severity in _FATAL))
    words = "; ".join(errors[:QUOTED])[:QUOTED_CHARACTERS] or "it gave no reason"
    return SbsError(f"{trt.__name__} {getattr(trt, '__version__', '')} {what}: {words}")


def mark(trt: ModuleType) -> int:
    """Number of records so far."""
    return len(recording_logger(trt).records)
