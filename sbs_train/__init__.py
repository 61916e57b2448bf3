"""From a float model and its data to a plan and weights: bits of every layer, channels of every group.

    import sbs_train

    search = sbs_train.Search(model, example_inputs, target="30x", steps=1000, calibration=batches)

Importing this package needs no torch; the names below bring what they need.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sbs_train.contract.config import SearchConfig as SearchConfig
    from sbs_train.contract.config import TrainConfig as TrainConfig
    from sbs_train.contract.errors import SbsError as SbsError
    from sbs_train.contract.plan import Plan as Plan
    from sbs_train.contract.plan import load_plan as load_plan
    from sbs_train.stages.in_loop import Search as Search
    from sbs_train.stages.run import Run as Run
    from sbs_train.stages.run import compress as compress
    from sbs_train.tasks.protocol import Task as Task

_HOMES = {
    "Plan": "sbs_train.contract.plan",
    "Run": "sbs_train.stages.run",
    "SbsError": "sbs_train.contract.errors",
    "Search": "sbs_train.stages.in_loop",
    "SearchConfig": "sbs_train.contract.config",
    "Task": "sbs_train.tasks.protocol",
    "TrainConfig": "sbs_train.contract.config",
    "compress": "sbs_train.stages.run",
    "load_plan": "sbs_train.contract.plan",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
