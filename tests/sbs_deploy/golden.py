"""golden.npz of the tests' runs."""

from typing import Any

from sbs_deploy.export.golden_file import GoldenArrays, load_golden
from sbs_train.contract.plan import load_plan
from sbs_train.contract.rundir import RunDir


def golden_of(run: RunDir) -> GoldenArrays:
    """The golden samples of a run."""
    return load_golden(run.golden, load_plan(run.plan))


def only(arrays: dict[str, Any]) -> Any:
    """The array of a network with one."""
    (array,) = arrays.values()
    return array
