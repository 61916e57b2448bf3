"""The process of one run: `python -m sbs_train.sweep.worker`, with its task as a line of JSON on standard input."""

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from sbs_train.contract import console
from sbs_train.contract.config import TrainConfig


def main() -> int:
    """Run the task from standard input; returns 0 for a finished run, even if it missed its target."""
    # The sweep stops runs by SIGINT, which processes that a shell starts in the background ignore.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_sweep, args=(sys.stdin.fileno(),), daemon=True).start()
    return console.run_command("sbs-train", lambda: work(order), verbose=True)


def work(order: dict[str, Any]) -> int:
    """Run the missing stages of one run."""
    from sbs_train.contract.console import keep_freed_memory
    from sbs_train.stages.train import train, train_float

    config, out = TypeAdapter(TrainConfig).validate_python(order["config"]), Path(order["out"])
    keep_freed_memory()
    if order["first_stage"]:
        train_float(config, out)
    else:
        train(config, out)
    return 0


def _end_with_the_sweep(standard_input: int) -> None:
    """Exit when the sweep has ended. A run can be resumed from any moment, so no cleanup is needed."""
    while os.read(standard_input, 1):
        pass
    os._exit(console.INTERRUPTED)


if __name__ == "__main__":
    raise SystemExit(main())
