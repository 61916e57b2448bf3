"""What was measured so far, so that an interrupted run goes on: one line of JSON a measurement, beside --out."""

import contextlib
import json
from pathlib import Path
from typing import Any

from sbs_train.contract.errors import SbsError

Entry = dict[str, Any]


class Cache:
    """Measurements by key. A line that was cut off when the machine stopped does not count.

    Raises:
        SbsError: the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries: dict[str, list[Entry]] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
            if text and not text.endswith("\n"):
                with path.open("a", encoding="utf-8") as file:
                    file.write("\n")
        except OSError as error:
            raise SbsError(f"{path} cannot be used ({error.strerror}); choose another --out") from error
        for line in text.splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                self._entries.setdefault(entry["key"], []).append(entry["found"])

    def found(self, key: str) -> list[Entry]:
        """Everything that was measured under a key, in order."""
        return self._entries.get(key, [])

    def add(self, key: str, found: Entry) -> None:
        """Keep one measurement."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "found": found}, allow_nan=False) + "\n")
        except OSError as error:
            raise SbsError(f"{self.path} cannot be written ({error.strerror})") from error
        self._entries.setdefault(key, []).append(found)
