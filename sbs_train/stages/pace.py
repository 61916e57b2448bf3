"""Progress of a stage in lines, for logs and pipes: where no terminal shows a bar."""

import time
from collections.abc import Callable

FIRST_S = 5.0
"""Seconds of a stage before its first line on the pace."""
GAP_S, GAP = 30.0, 0.1
"""A line follows another after at least so many seconds, and after this part of the time so far."""


class Pace:
    """Says how many steps a stage has; then, ever more seldom, seconds per step and the time left."""

    def __init__(
        self, name: str, total: int, done: int, log: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`done` of `total` steps were taken by earlier sessions; `clock` counts seconds."""
        self._name, self._total, self._done, self._log, self._clock = name, total, done, log, clock
        self._first = done + 1
        self._began = self._next = 0.0
        if done < total:
            log(f"{name}: {total} steps" + (f", {total - done} left" if done else ""))

    def advance(self) -> None:
        """One more step is done."""
        self._done += 1
        now = self._clock()
        if self._done == self._first:  # the first step also compiles and fills caches: the clock starts behind it
            self._began, self._next = now, now + FIRST_S
        elif now >= self._next and self._done < self._total:
            passed = now - self._began
            step_s = passed / (self._done - self._first)
            left = in_words((self._total - self._done) * step_s)
            self._log(f"{self._name}: step {self._done}/{self._total}, {step_s:.3g} s a step, {left} left")
            self._next = now + max(GAP_S, GAP * passed)


def in_words(seconds: float) -> str:
    """A duration in the unit that suits it: 45 s, 12 min, 3.4 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
