"""The curves of a run for TensorBoard, written at once: a full disk ends the curves, not the training."""

import os
import socket
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]
from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]
from torch.utils.tensorboard.summary import scalar


class Curves:
    """A new file of events in a directory.

    Raises:
        OSError: it cannot be written, in any of the calls.
    """

    def __init__(self, directory: Path) -> None:
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._file = (directory / name).open("xb")
        self._records = RecordWriter(self._file)
        self._write(Event(file_version="brain.Event:2"))
        self._file.flush()

    def add(self, values: dict[str, float], step: int) -> None:
        """One point of each named curve."""
        for name, value in values.items():
            self._write(Event(summary=scalar(name, value), step=step))  # type: ignore[no-untyped-call]
        self._file.flush()

    def close(self) -> None:
        """Write what is left."""
        self._file.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
