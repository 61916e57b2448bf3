"""Numbers as people read them; a missing one is a dash."""

DASH = "–"


def si(value: float | None, unit: str = "") -> str:
    """Three significant digits with a decimal prefix.

    >>> si(41.6e6), si(1.234e9, "B"), si(None)
    ('41.6 M', '1.23 GB', '–')
    """
    if value is None:
        return DASH
    value = float(f"{value:.3g}")
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{_digits(value / factor)} {prefix}{unit}"
    return f"{_digits(value)} {unit}".strip()


def percent(value: float | None) -> str:
    """Two decimals of a percentage."""
    return DASH if value is None else f"{value:.2f} %"


def times(value: float | None) -> str:
    """A factor, such as 2.31x."""
    return DASH if value is None else f"{_digits(value)}x"


def milliseconds(value: float | None) -> str:
    """Three significant digits of a time."""
    return DASH if value is None else f"{_digits(value)} ms"


def _digits(value: float) -> str:
    """Three significant digits without an exponent for what people measure."""
    value = float(f"{value:.3g}")
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3g}"
