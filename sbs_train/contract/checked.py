"""Settings with ranges in their annotations, which they check themselves."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, TypeVar, get_type_hints

from sbs_train.contract.errors import SbsError


@dataclass(frozen=True)
class Range:
    """The allowed range of a numeric setting; part of its field's annotation."""

    words: str
    holds: Callable[[float], bool]


def at_most(most: int) -> Range:
    """The range of a setting that has a largest value."""
    return Range(f"must be above 0 and at most {most}", lambda value: value <= most)


Number = TypeVar("Number", bound=float | None)
ABOVE_0 = Range("must be above 0", lambda value: value > 0)
Positive = Annotated[Number, ABOVE_0, at_most(2**31)]
NotNegative = Annotated[Number, Range("must be 0 or more", lambda value: 0 <= value <= 2**31)]
Fraction = Annotated[Number, Range("must be at least 0 and below 1", lambda value: 0 <= value < 1)]


class Checked:
    """Settings that check their own values."""

    def check(self, prefix: str = "--") -> None:
        """Refuse numbers out of their ranges.

        Args:
            prefix: what stands before the names of these settings on the command line, such as `--search.`.

        Raises:
            SbsError: names the flag, its value and the allowed range.
        """
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            value = getattr(self, name)
            for limit in getattr(hint, "__metadata__", ()):
                if isinstance(limit, Range) and isinstance(value, int | float) and not limit.holds(value):
                    raise SbsError(f"{prefix}{name.replace('_', '-')} {value} {limit.words}")
