"""The targets of a sweep in their shortest form, which is the name of the run directory as well."""

import re
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal

from sbs_train.contract.config import TrainConfig
from sbs_train.contract.errors import SbsError

_SCALE = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def shortest_forms(targets: Sequence[str], config: TrainConfig) -> list[str]:
    """Every target without spaces and needless zeros: 1.2ms for ` 1.20 ms`.

    Raises:
        SbsError: there is none, one is no target for these settings, or two are the same.
    """
    if not targets:
        raise SbsError("--targets: name the budgets to sweep over, such as --targets 20x 40x 66x 100x")
    values: dict[tuple[Decimal, str], str] = {}
    for target in targets:
        if target.strip() == "none":
            raise SbsError("--targets none: a sweep needs budgets, such as --targets 20x 40x 66x 100x")
        replace(config, target=target).check()
        match = re.fullmatch(r"([0-9.]+)\s*([a-zA-Z]*)", target.strip())
        assert match is not None  # or `check` had refused it
        number, suffix = Decimal(match[1]), match[2]
        # BOPs are BOPs, whatever they are counted in: 1000M is 1G.
        value = (number * _SCALE[suffix], "BOPs") if suffix in _SCALE else (number, suffix)
        if value in values:
            raise SbsError(f"--targets: {values[value]} and {target.strip()} are the same target; give each once")
        values[value] = f"{number.normalize():f}{suffix}"
    return list(values.values())
