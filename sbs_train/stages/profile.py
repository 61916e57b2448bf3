"""Describe a model, or evaluate a finished run, without training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from sbs_train.contract import trust
from sbs_train.contract.config import SearchConfig, load_config, require_named
from sbs_train.contract.cost import FP32_BITS, bops
from sbs_train.contract.plan import InputSpec, ModelSpec
from sbs_train.contract.rundir import RunDir
from sbs_train.contract.schema import image_of
from sbs_train.inputs.exportable import export_problem
from sbs_train.inputs.models import image_example, untrained, usual_classes
from sbs_train.network.structure import structure_of
from sbs_train.quant.layers import layer_kind
from sbs_train.stages.cliffs import budgets
from sbs_train.stages.weights import restore
from sbs_train.tasks import classification, segmentation
from sbs_train.tasks.feed import Feed
from sbs_train.tasks.load import task_of
from sbs_train.tasks.protocol import Task
from sbs_train.tasks.rehearsal import training_problem

UNTRIED: dict[str, Callable[[InputSpec, int], Task]] = {
    "classification": classification.untried,
    "segmentation": segmentation.untried,
}
"""By task, what makes one without data."""


def profile(
    model: str, input: str, classes: int | None, width: int, cost: Path | None = None, task: str = "classification"
) -> dict[str, Any]:
    """A model for one image of `input` (C,H,W) as a dict: `macs`, `parameters`, `layers[]`, `additions[]`, `groups[]`,
    and `training`, why the model cannot be trained, if so; with `cost`, a device.json, also `budgets` there.

    Raises:
        SbsError: the model is unknown, or the input is not three positive numbers; or as `budgets` does.
    """
    network, spec = untrained(model, image_of(input), classes, width)
    example = image_example(spec)
    feed = Feed(task=UNTRIED[task](spec, classes or usual_classes(model)))
    structure = structure_of(network, example, SearchConfig().reach(with_cost=cost is not None))
    topology = structure.topology
    modules = dict(network.named_modules())
    return {
        "model": model,
        "macs": topology.total_macs,
        "bops_fp32": bops(float(topology.total_macs), FP32_BITS, FP32_BITS),
        "other_macs": topology.other_macs,
        "idle_layers": list(topology.idle),
        "training": training_problem(network, feed, samples=2),
        "export": export_problem(network, example),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "layers": [
            {
                "name": name,
                "kind": layer_kind(modules[name]),
                "macs": shape.macs,
                "weights": shape.weights,
                "group_in": shape.group_in,
                "group_out": shape.group_out,
                "quantizable": not shape.float_reason,
                "reason": shape.float_reason,
            }
            for name, shape in topology.layers.items()
        ],
        "additions": [
            {"name": addition.place.name, "quantizable": not addition.float_reason, "reason": addition.float_reason}
            for addition in structure.additions
        ],
        "groups": [
            {
                "id": group.id,
                "size": group.size,
                "prunable": group.prunable,
                "reason": topology.reasons.get(group.id, ""),
                "producers": group.producers,
                "consumers": group.consumers,
            }
            for group in topology.groups
        ],
        **({} if cost is None else {"budgets": budgets(cost, _spec(model, classes, width), spec)}),
    }


def _spec(model: str, classes: int | None, width: int) -> ModelSpec:
    return ModelSpec(name=model, arguments={"width": width, "num_classes": classes or usual_classes(model)})


def evaluate_run(run: RunDir, stage: Literal["fp32", "search", "finetune"]) -> dict[str, float]:
    """The task's metrics on the test split, the score first, of one stage of a run."""
    config = load_config(run.config)
    require_named(config, str(run.root))
    trust.require_task(config.task, run.config)
    network, _ = restore(run, stage)
    return dict(Feed(task=task_of(config)).evaluate(network.model, "test"))
