"""The process of one run: `python -m sbs_train.sweep.worker`, its order as a line of JSON on standard input."""

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
    """Do as told; 0 for a run that came to its end, whether or not it reached its target."""
    # The sweep ends runs with it; what a shell starts in the background ignores it, and so would we.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_sweep, args=(sys.stdin.fileno(),), daemon=True).start()
    return console.run_command("sbs-train", lambda: work(order), verbose=True)


def work(order: dict[str, Any]) -> int:
    """Run what is missing of one run."""
    from sbs_train.contract.console import keep_freed_memory
    from sbs_train.stages.run import train, train_float

    config, out = TypeAdapter(TrainConfig).validate_python(order["config"]), Path(order["out"])
    keep_freed_memory()
    if order["first_stage"]:
        train_float(config, out)
    else:
        train(config, out)
    return 0


def _end_with_the_sweep(standard_input: int) -> None:
    """Wait until the sweep is gone. A run can be gone on with from any moment, so there is nothing to clean up."""
    while os.read(standard_input, 1):
        pass
    os._exit(console.INTERRUPTED)


if __name__ == "__main__":
    raise SystemExit(main())
