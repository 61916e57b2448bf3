"""Where the names of marks stand in a chart, so that none covers a mark or another name."""

from collections.abc import Sequence

WIDTH, HEIGHT = 300.0, 220.0
"""Pixels of the plot on a phone; on a wide page there is more room."""
LETTER, LINE = 6.5, 12.0
"""Pixels of a letter, about, and of a line; no taller than a mark, so that a name fits beside one."""
MARK = 6.0
"""Half of a mark."""

Box = tuple[float, float, float, float]
"""Left, right, bottom, top."""


def placed(marks: Sequence[tuple[float, float, str]], ends: tuple[float, float]) -> list[str | None]:
    """Plotly's text position for the name of each mark; None where there is no room for it.

    Args:
        marks: (x on the scale of the axis, y, name); an empty name needs no room.
        ends: of the x axis.
    """
    ys = [y for _, y, _ in marks]
    low, high = min(ys), max(ys)
    span = (high - low) or 1.0
    at = [((x - ends[0]) / (ends[1] - ends[0]) * WIDTH, (y - low) / span * HEIGHT) for x, y, _ in marks]
    taken: list[Box] = [(x - MARK, x + MARK, y - MARK, y + MARK) for x, y in at]
    found: list[str | None] = []
    for (x, y), (_, _, name) in zip(at, marks, strict=True):
        boxes = _boxes(x, y, LETTER * len(name))
        inside = {place: box for place, box in boxes.items() if box[0] >= 0 and box[1] <= WIDTH}
        free = (place for place, box in inside.items() if not any(_meet(box, other) for other in taken))
        chosen = next(free, None) if name else None
        if chosen is not None:
            taken.append(boxes[chosen])
        found.append(chosen)
    return found


def _boxes(x: float, y: float, width: float) -> dict[str, Box]:
    half, line = width / 2, LINE / 2
    return {
        "top center": (x - half, x + half, y + MARK, y + MARK + LINE),
        "bottom center": (x - half, x + half, y - MARK - LINE, y - MARK),
        "middle right": (x + MARK, x + MARK + width, y - line, y + line),
        "middle left": (x - MARK - width, x - MARK, y - line, y + line),
    }


def _meet(one: Box, other: Box) -> bool:
    return one[0] < other[1] and other[0] < one[1] and one[2] < other[3] and other[2] < one[3]
