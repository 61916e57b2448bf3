"""Numbers as people read them; a missing one is a dash."""

from decimal import Decimal

from sbs_deploy.measure.ledger.rank import Estimate

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


def score(value: float | None, name: str = "") -> str:
    """A task's score with its name, such as 98.50 top1; four digits where it is small."""
    if value is None:
        return DASH
    return f"{value:.2f} {name}".strip() if abs(value) >= 10 else f"{value:.4g} {name}".strip()


def times(value: float | None) -> str:
    """A factor, such as 2.31x."""
    return DASH if value is None else f"{_digits(value)}x"


def milliseconds(value: float | None) -> str:
    """Three significant digits of a time."""
    return DASH if value is None else f"{_digits(value)} ms"


def signed(value: float | None) -> str:
    """Two significant digits with the sign, without an exponent down to a millionth.

    >>> signed(0.0123), signed(-0.0000058), signed(-3e-8), signed(0.0), signed(None)
    ('+0.012', '−0.0000058', '−3e-08', '0', '–')
    """
    if value is None:
        return DASH
    if value == 0:
        return "0"
    rounded = f"{value:+.2g}"
    text = format(Decimal(rounded), "+f") if abs(value) >= 1e-6 else rounded
    return text.replace("-", "−", 1)


def signed_points(value: float) -> str:
    """Percentage points with their sign.

    >>> signed_points(-0.28), signed_points(1.0)
    ('−0.28', '+1.00')
    """
    return f"{value:+.2f}".replace("-", "−")


def share(value: float | None) -> str:
    """A part as a whole percentage.

    >>> share(0.129), share(-0.04), share(None)
    ('13 %', '−4 %', '–')
    """
    return DASH if value is None else f"{100 * value:.0f} %".replace("-", "−")


def number(value: float | None) -> str:
    """Three significant digits."""
    return DASH if value is None else _digits(value)


def estimate(value: Estimate | None) -> str:
    """A statistic with its interval (`ledger.rank.Estimate`)."""
    return DASH if value is None else f"{value.value:.2f} ({value.low:.2f} to {value.high:.2f})".replace("-", "−")


def _digits(value: float) -> str:
    """Three significant digits without an exponent for what people measure."""
    value = float(f"{value:.3g}")
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3g}"
