"""The process of one run."""

import io
import signal
import sys

from sbs_train.contract import console
from sbs_train.sweep import worker


def test_a_run_of_a_sweep_in_the_background_can_be_interrupted(monkeypatch):
    """Shells have what they start in the background ignore SIGINT, which children inherit."""
    heard = []

    def command(name, execute, **options):
        heard.append(signal.getsignal(signal.SIGINT))
        return 0

    order = io.StringIO("{}\n")
    order.fileno = lambda: 0
    monkeypatch.setattr(sys, "stdin", order)
    monkeypatch.setattr(worker, "_end_with_the_sweep", lambda standard_input: None)
    monkeypatch.setattr(console, "run_command", command)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert worker.main() == 0
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == [signal.default_int_handler]
