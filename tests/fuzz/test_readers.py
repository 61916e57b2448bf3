"""Whatever a file holds: each reader of SBS ends in success or one line, in time and memory, and writes nothing else.

The seed of the slow test is the day's; `SBS_FUZZ_SEED=2026-11-30 pytest tests/fuzz -m slow` repeats that of another.
`SBS_FUZZ_FILES` is how many files it alters.
"""

import datetime
import json
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("torch")

ROOT = Path(__file__).parents[2]
SILENT_S = 200.0
"""Longer than a case may take: what waits, or is native code that a signal does not end."""


def problems_of(seed: str, files: int, scratch: Path) -> list[str]:
    """Every case that did not end as it should, with what repeats it."""
    found: list[str] = []
    first = 0
    while first < files:
        folder = scratch / f"from-{first}"
        folder.mkdir()
        command = [sys.executable, "-m", "tests.fuzz.worker", seed, str(first), str(files), str(folder)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
            lines: queue.Queue[str | None] = queue.Queue()
            threading.Thread(target=_listen, args=(process, lines), daemon=True).start()
            last: dict[str, object] = {}
            done = False
            while not done:
                try:
                    line = lines.get(timeout=SILENT_S if last else 600)
                except queue.Empty:
                    process.kill()
                    found.append(f"{last}: silent for {SILENT_S} s")
                    break
                if line is None:
                    found.append(f"{last}: the process ended with {process.wait()}")
                    break
                told = json.loads(line)
                done = "done" in told
                if "problems" in told:
                    found.append(
                        f"{told['format']} {told['case']} {told['alteration']}: " + "\n".join(told["problems"])
                    )
                elif not done:
                    last = told
        if done:
            break
        if not last:
            break  # it did not even start
        first = int(str(last["case"])) + 1
    return found


def _listen(process: "subprocess.Popen[str]", lines: "queue.Queue[str | None]") -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put(None)


def check(seed: str, files: int, scratch: Path) -> None:
    found = problems_of(seed, files, scratch)
    assert not found, f"seed {seed}, {files} files, {len(found)} problems:\n" + "\n".join(found)


def test_a_few_files_of_every_format(tmp_path: Path) -> None:
    check("fixed", 200, tmp_path)


@pytest.mark.slow
def test_ten_thousand_files_of_the_day(tmp_path: Path) -> None:
    seed = os.environ.get("SBS_FUZZ_SEED", datetime.date.today().isoformat())
    check(seed, int(os.environ.get("SBS_FUZZ_FILES", "10000")), tmp_path)
