"""Names beside marks: as many as have room, and none on another."""

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from sbs_deploy.report.labels import HEIGHT, LETTER, LINE, MARK, WIDTH, placed

MARKS = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.text("abc", min_size=1, max_size=12)), max_size=12)


def rectangle(mark, low, high, place):
    """Left, bottom, width and height of a name, from its middle as plotly's words have it."""
    x, y, name = mark
    width = LETTER * len(name)
    left, up = {
        "top center": (0.0, 0.5),
        "bottom center": (0.0, -0.5),
        "middle right": (0.5, 0.0),
        "middle left": (-0.5, 0.0),
    }[place]
    x = x * WIDTH + left * (2 * MARK + width)
    y = (y - low) / ((high - low) or 1) * HEIGHT + up * (2 * MARK + LINE)
    return x - width / 2, y - LINE / 2, width, LINE


def overlap(one, other):
    """Of two rectangles, in each direction."""
    return min(min(one[i] + one[i + 2], other[i] + other[i + 2]) - max(one[i], other[i]) for i in (0, 1))


@given(MARKS)
def test_names_cover_neither_names_nor_marks(found):
    marks = [(0.0, 0.0, ""), *found]
    low, high = min(y for _, y, _ in marks), max(y for _, y, _ in marks)
    places = placed(marks, (0.0, 1.0))
    names = [rectangle(mark, low, high, place) for mark, place in zip(marks, places, strict=True) if place]
    assert all(overlap(one, other) < 1e-6 for one, other in combinations(names, 2))
    dots = [rectangle((x, y, ""), low, high, "top center") for x, y, _ in marks]
    middles = [(x, y - MARK - LINE / 2, 0, LINE) for x, y, _, _ in dots]
    assert all(overlap(name, dot) < 1e-6 for name in names for dot in middles)


def test_names_of_equal_runs_stand_around_them():
    alone = placed([(0.5, 99.0, "run")], (0.0, 1.0))
    assert alone == ["top center"]
    level = placed([(0.5, 99.0, "a-run"), (0.52, 99.0, "another-run"), (0.54, 99.0, "one-more"), (0.9, 98, "")], (0, 1))
    assert level == ["top center", "bottom center", "middle right", None]
    assert placed([(0.5, 99.0, "same"), (0.5, 99.0, "same")], (0.0, 1.0)) == ["top center", "bottom center"]
