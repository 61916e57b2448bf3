"""The four stages of a run in one form: skipped where the output is current, else computed by all ranks and written by
rank 0.

A manifest beside the output says what the stage was made from. It is written last, so a stage that was stopped is
repeated, from its checkpoint where it trains.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sbs_train.contract import rundir
from sbs_train.contract.config import to_dict
from sbs_train.contract.documents import add_metrics
from sbs_train.contract.plan import Plan, load_plan, save_plan
from sbs_train.network.network import Network
from sbs_train.stages.context import Context, Stage, Stopwatch
from sbs_train.stages.loop import evaluate
from sbs_train.stages.plans import apply_plan
from sbs_train.stages.weights import (
    finish,
    is_finished,
    load_float_weights,
    load_weights,
    maker_of,
    save_weights,
    stage_files,
)
from sbs_train.tasks.protocol import score_of


@dataclass(frozen=True, kw_only=True)
class Made:
    """Result of a stage, equal on every rank."""

    write: Callable[[Path], None] = lambda path: None
    """Writes the stage's output; rank 0 calls it."""
    plan: Plan | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    """The stage's entry in metrics.json; none if empty."""
    earlier_s: float = 0.0
    """Seconds that earlier sessions spent on the stage."""
    untrained: str = ""
    """Where the weights are from, if the stage trained nothing."""


def run_stage(ctx: Context, stage: Stage, compute: Callable[[], Made]) -> Made | None:
    """Run `compute` and write its result into the run directory; None if the output was current and nothing ran."""
    if ctx.ranks.on_first(lambda: is_finished(ctx.run, stage.output, stage.made_from)):
        ctx.log(f"{stage.name}: up to date")
        return None
    watch = Stopwatch()
    made = compute()

    def write() -> None:
        path, plan_path = stage_files(ctx.run, stage.output)
        if plan_path is not None and made.plan is not None:
            save_plan(made.plan, plan_path)
        made.write(path)
        if made.metrics:
            seconds = made.earlier_s + watch.seconds
            add_metrics(ctx.run, {stage.output: made.metrics, "seconds": {stage.output: round(seconds, 3)}})
        finish(ctx.run, stage.output, stage.made_from)

    ctx.ranks.on_first(write)
    return made


def train_stage(ctx: Context, network: Network, stage: Stage, train: Callable[[], Made]) -> Plan | None:
    """Run a stage whose output is the weights of `network` and, except in pretraining, a plan; returns the plan.

    Args:
        network: gets the weights and the plan, trained now or read from the run.
        train: trains `network`; `train_stage` adds the test metrics and the weights to its result.
    """
    weights, plan_path = stage_files(ctx.run, stage.output)

    def compute() -> Made:
        made = train()
        metrics = evaluate(ctx, network.model, "test")
        state = network.float_state() if plan_path is None else network.model.state_dict()
        return replace(made, write=lambda path: save_weights(state, path), metrics={**metrics, **made.metrics})

    made = run_stage(ctx, stage, compute)
    if made is not None:
        reduction = f"{made.plan.cost.reduction:.1f}x, " if made.plan is not None else ""
        name, score = score_of(made.metrics)
        ctx.log(f"{made.untrained or stage.name}: {reduction}test {name} {score:.4g}")
        return made.plan
    if plan_path is None:
        read_weights(ctx, network, weights, maker_of(ctx.run))
        return None
    ctx.ranks.on_first(lambda: load_weights(network.model, weights, maker_of(ctx.run)))
    ctx.ranks.share(network.model)
    plan = ctx.ranks.on_first(lambda: load_plan(plan_path))
    apply_plan(network, plan)
    return plan


def read_weights(ctx: Context, network: Network, path: Path, made_by: str | None = None) -> None:
    """Load float weights on rank 0 and share them; `made_by` is the command that makes the file, see `load_weights`."""
    ctx.ranks.on_first(lambda: load_float_weights(network, path, made_by))
    ctx.ranks.share(network.model)


def settings_hash(ctx: Context, keys: tuple[str, ...], **more: Any) -> str:
    """SHA-256 of the named settings of the run and of a stage's other dependencies."""
    value = to_dict(ctx.config)
    return rundir.hash_of({key: value[key] for key in keys} | more)


def output_hash(ctx: Context, output: str) -> str:
    """SHA-256 of the output of an earlier stage, from its manifest."""
    return ctx.ranks.on_first(lambda: rundir.read_manifest(stage_files(ctx.run, output)[0]).sha256)
