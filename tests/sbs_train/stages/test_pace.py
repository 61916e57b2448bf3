"""Lines of a stage's pace, by a clock that the test holds."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sbs_train.stages.pace import FIRST_S, GAP_S, Pace, in_words


def lines_of(total, done, step_s, first_s=0.0):
    """(second, line) for a stage whose steps take `step_s`, the first one `first_s` more."""
    now, said = 0.0, []
    pace = Pace("pretrain", total, done, lambda line: said.append((now, line)), lambda: now)
    for step in range(done, total):
        now += step_s + (first_s if step == done else 0.0)
        pace.advance()
    return said


def test_a_long_stage_says_its_steps_then_its_pace_then_seldom():
    (at, begin), (early, first), *rest = lines_of(8000, 0, 0.5, first_s=20.0)
    assert (at, begin) == (0.0, "pretrain: 8000 steps")
    # The first step took 20.5 s and is not the pace: the 11th ends 5 s behind it, 7,989 of half a second are left.
    assert early == 20.5 + FIRST_S and first == "pretrain: step 11/8000, 0.5 s a step, 67 min left"
    times = [early, *(second for second, _ in rest)]
    assert all(later - sooner >= GAP_S for sooner, later in itertools.pairwise(times))
    assert 10 <= len(rest) <= 40, "more than an hour, no flood of lines"


def test_a_resumed_stage_counts_on():
    said = [line for _, line in lines_of(100, 60, 1.0)]
    assert said[:2] == ["pretrain: 100 steps, 40 left", "pretrain: step 66/100, 1 s a step, 34 s left"]


def test_a_finished_stage_says_nothing():
    assert lines_of(100, 100, 1.0) == []


@given(st.integers(1, 300), st.floats(0.001, 100.0), st.data())
def test_the_pace_is_that_of_the_steps_of_this_session(total, step_s, data):
    done = data.draw(st.integers(0, total - 1))
    for now, line in lines_of(total, done, step_s)[1:]:
        step, pace = re.search(r"step (\d+)/\d+, (\S+) s", line).groups()
        assert float(pace) == pytest.approx(step_s, rel=0.01)
        assert (int(step) - done) * step_s == pytest.approx(now)


@pytest.mark.parametrize(("seconds", "words"), [(0.4, "0 s"), (89, "89 s"), (720, "12 min"), (12240, "3.4 h")])
def test_durations_in_words(seconds, words):
    assert in_words(seconds) == words
