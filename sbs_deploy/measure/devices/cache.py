"""What was measured so far, so that an interrupted run goes on: one line of JSON a measurement, beside --out."""

import contextlib
import json
from pathlib import Path
from typing import Any

from sbs_train.contract import rundir

Entry = dict[str, Any]


class Cache:
    """Measurements by key. A line that was cut off when the machine stopped does not count.

    Raises:
        SbsError: the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries: dict[str, list[Entry]] = {}
        rundir.make_directory(path.parent)
        text = rundir.read_bytes(path).decode(errors="replace") if rundir.is_file(path) else ""
        if text and not text.endswith("\n"):
            with rundir.appending(path) as file:
                file.write(b"\n")
        for line in text.splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                self._entries.setdefault(entry["key"], []).append(entry["found"])

    def found(self, key: str) -> list[Entry]:
        """Everything that was measured under a key, in order."""
        return self._entries.get(key, [])

    def add(self, key: str, found: Entry) -> None:
        """Keep one measurement."""
        with rundir.appending(self.path) as file:
            file.write(json.dumps({"key": key, "found": found}, allow_nan=False).encode() + b"\n")
        self._entries.setdefault(key, []).append(found)
