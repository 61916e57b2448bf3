"""A whole run: pretrain → calibrate → search → finetune, each stage skipping itself where its output is current."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sbs_train.contract import rundir
from sbs_train.contract.config import TrainConfig, check_config, save_config, target_reduction
from sbs_train.contract.plan import ModelSpec, Plan
from sbs_train.inputs.data import load_dataset
from sbs_train.stages.calibrate import calibrate
from sbs_train.stages.context import check_device, open_context
from sbs_train.stages.finetune import finetune
from sbs_train.stages.memory import keep_freed_memory
from sbs_train.stages.plans import build_network, fastest_layout
from sbs_train.stages.pretrain import pretrain
from sbs_train.stages.search import search
from sbs_train.stages.weights import load_float_weights


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a finished run came to."""

    run: rundir.RunDir
    plan: Plan
    metrics: dict[str, Any]
    wanted: float | None
    """The reduction that was asked for, if any."""
    reachable: tuple[float, float]
    reached: bool


def train(config: TrainConfig, out: Path) -> Outcome:
    """Run every stage in `out`. Everything a user can get wrong is checked before anything is written.

    Raises:
        SbsError: bad settings, missing data, an unknown model, or an output directory that cannot be written to.
    """
    check_config(config)
    check_device(config)
    data = load_dataset(config.data, config.data_dir)
    spec = ModelSpec(name=config.model, width=config.width, num_classes=data.num_classes)
    network = build_network(config, spec, data.input)
    target_reduction(config.target, network.bops_fp32)
    if config.weights is not None:
        load_float_weights(network, config.weights)
    run = rundir.create_run(out)
    save_config(config, run.config)
    rundir.link_latest(run)
    keep_freed_memory()
    ctx = open_context(run, config, data)
    try:
        network.model.to(ctx.fabric.device)
        network.model.to(memory_format=fastest_layout(network, ctx.fabric.device))
        fp32 = pretrain(ctx, network)
        calibration = calibrate(ctx, network, fp32)
        found = search(ctx, network, calibration)
        plan = finetune(ctx, network, found.plan)
    finally:
        ctx.writer.close()
    metrics = rundir.read_json(run.metrics)
    metrics["budget"] = {
        "target": config.target,
        "reduction": plan.cost.reduction,
        "reached": found.reached,
        "reachable": list(found.reachable),
    }
    rundir.write_json(run.metrics, metrics)
    return Outcome(
        run=run, plan=plan, metrics=metrics, wanted=found.wanted, reachable=found.reachable, reached=found.reached
    )
