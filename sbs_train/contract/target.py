"""What `--target` asks for: a reduction, BOPs or milliseconds."""

import math
import re
from typing import Literal

from sbs_train.contract.errors import SbsError

Unit = Literal["BOPs", "ms"]
SUFFIXES = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_EXAMPLES = {"BOPs": "60x", "ms": "2x"}


def target_reduction(target: str, unit: Unit, reference: float) -> float | None:
    """How many times cheaper than dense FP32 `target` asks for; None if it is "none".

    Args:
        unit: unit of the search's cost.
        reference: cost of the dense network in FP32, in that unit; infinite if not known yet.

    Raises:
        SbsError: the text is no target, has another unit, or asks for more cost than dense FP32 has.

    >>> target_reduction("60x", "BOPs", 1e12), target_reduction("32G", "BOPs", 64e9), target_reduction("2ms", "ms", 5)
    (60.0, 2.0, 2.5)
    """
    text = target.strip()
    if text == "none":
        return None
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*(x|ms|[KMGT]?)", text)
    if match is None:
        raise SbsError(f"--target {target}: not a reduction such as 60x, BOPs such as 32G or a latency such as 1.2ms")
    number, suffix = float(match[1]), match[2]
    if suffix == "ms" and unit == "BOPs":
        raise SbsError(f"--target {target} needs --cost device.json; make it with `sbs-deploy profile-device`")
    if suffix == "" and number < 1e6:
        other = f"{target}G (BOPs)" if unit == "BOPs" else f"{target}ms"
        raise SbsError(f"--target {target}: did you mean {target}x (a reduction) or {other}?")
    if suffix not in ("x", "ms") and unit == "ms":
        raise SbsError(f"--target {target}: with --cost the target is a latency such as 1.2ms; --max-bops limits BOPs")
    example = _EXAMPLES[unit]
    if not number:
        raise SbsError(f"--target {target} is nothing; give 1x or more, such as {example}")
    reduction = number if suffix == "x" else reference / (number * SUFFIXES.get(suffix, 1.0))
    if reduction < 1 or (reference < math.inf and not math.isfinite(reduction)):
        raise SbsError(
            f"--target {target} asks for {reduction:g}x of the FP32 cost; give 1x or more, such as {example}"
        )
    return reduction


def bops_of(text: str, flag: str) -> float:
    """BOPs such as 5G; SbsError names the flag."""
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)([KMGT])", text.strip())
    if match is None or not float(match[1]):
        raise SbsError(f"{flag} {text}: not BOPs such as 5G")
    return float(match[1]) * SUFFIXES[match[2]]
