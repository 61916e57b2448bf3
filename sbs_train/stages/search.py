"""Stage 3: weights and clip values train while a rule decides the gates, until the plan fits the budget.

At the end of every late epoch the network is frozen to the plan of the moment and validated; the best one is kept, not
the last. It then meets simple plans of no larger cost, see tournament.py.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from torch import Tensor

from sbs_train.contract import rundir
from sbs_train.contract.config import LOSS_FIELDS
from sbs_train.contract.device import search_device
from sbs_train.contract.plan import Plan
from sbs_train.contract.records import Search as SearchRecord
from sbs_train.contract.records import SearchDevice
from sbs_train.contract.target import bops_of, target_reduction
from sbs_train.inputs.state import load_state
from sbs_train.inputs.tensors import fitting_state
from sbs_train.network.network import Network
from sbs_train.quant.space import SearchSpace
from sbs_train.stages.choices import Choices
from sbs_train.stages.context import Context, Stage
from sbs_train.stages.descent import descent
from sbs_train.stages.limits import Limit
from sbs_train.stages.loop import (
    Best,
    Training,
    copy_state,
    evaluate,
    fit,
    reestimate_batchnorm,
    validated,
)
from sbs_train.stages.loss_rule import LossRule
from sbs_train.stages.plans import apply_plan
from sbs_train.stages.rankings import Ranking, by_magnitude, by_taylor
from sbs_train.stages.rates import constant, optimizer_of, warmed_up
from sbs_train.stages.rule import GateRule, freeze
from sbs_train.stages.runner import Made, output_hash, settings_hash, train_stage
from sbs_train.stages.teacher import teacher_of
from sbs_train.stages.threshold_rule import ThresholdRule
from sbs_train.stages.tournament import Effort, Tournament
from sbs_train.tasks.protocol import Batch, score_of

SETTINGS = ("target", "max_bops", "mode", "grid", *LOSS_FIELDS, "seed", "batch_size", "search")


@dataclass(frozen=True, kw_only=True)
class Found:
    """Result of the search."""

    plan: Plan
    wanted: float | None
    """The reduction that the target asks for, in the target's unit; None without a target."""
    reduction: float
    """Reduction of the plan."""
    space: SearchSpace
    reachable: tuple[float, float]
    """Smallest and largest possible reduction."""
    expected_ms: float | None
    """Predicted milliseconds of the plan on the device of `--cost`."""
    most_bops: float | None
    """The limit of `--max-bops`, if given."""
    device: SearchDevice | None
    """The device of `--cost`, if given."""

    @property
    def reached(self) -> bool:
        """Whether the plan fits the budget; the most expensive plan fits a larger budget as well."""
        within = self.most_bops is None or self.plan.cost.bops <= self.most_bops * (1 + 1e-6)
        return within and (self.wanted is None or self.reduction >= self.wanted * (1 - 1e-6))


def search(ctx: Context, network: Network) -> Found:
    """Write the plan and its weights to checkpoints/search.*, and put both into `network`."""
    config = ctx.config
    device = None if config.cost is None else search_device(config.cost)
    space = search_space(network)
    wanted = target_reduction(config.target, space.cost.unit, space.cost.reference)
    low, high = space.reachable()
    most_bops = None if config.max_bops is None else bops_of(config.max_bops, "--max-bops")
    more = {} if config.cost is None else {"cost": rundir.sha256_of(config.cost)}
    made_from = {"calibration": output_hash(ctx, "calibration"), "settings": settings_hash(ctx, SETTINGS, **more)}
    stage = Stage(name="search", output="search", made_from=made_from)

    def train() -> Made:
        if wanted is not None and wanted > high:
            ctx.log(f"search: {wanted:.4g}x cannot be reached (at most {high:.4g}x); going as far as it can")
        if not config.search.epochs:
            return Made(plan=freeze(network, {}, {}), metrics={"history": []})
        target = None if wanted is None else min(max(wanted, low), high)
        limits = [] if target is None else [Limit(cost=space.cost, most=space.cost.reference / target)]
        limits += [] if most_bops is None else [Limit(cost=space.bops_cost, most=most_bops)]
        return _search(ctx, stage, network, space, limits)

    plan = train_stage(ctx, network, stage, train)
    assert plan is not None
    reduction = plan_reduction(space, plan)
    expected_ms = space.cost.reference / reduction if space.cost.unit == "ms" else None
    if expected_ms is not None:
        batch = device.batch if device else 1
        per = f" per batch of {batch}" if batch > 1 else ""
        ctx.log(f"search: {expected_ms:.3g} ms expected{per}, {reduction:.2f}x of dense FP32")
    return Found(
        plan=plan,
        wanted=wanted,
        reduction=reduction,
        space=space,
        reachable=(low, high),
        expected_ms=expected_ms,
        most_bops=most_bops,
        device=device,
    )


def plan_reduction(space: SearchSpace, plan: Plan) -> float:
    """Cost of dense FP32 over cost of a plan, in the unit of the search's cost."""
    rows = [plan.layer(name) for name in space.searched]
    kept = [plan.kept_fraction(group.id) for group in space.prunable]
    return space.reduction([row.bits_w for row in rows], [row.bits_a for row in rows], kept)


class History:
    """History of the search, a row per epoch: logged scalars and the state of all gates."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        SearchRecord.model_validate({"history": state_dict["rows"]})
        self.rows = state_dict["rows"]


def search_space(network: Network) -> SearchSpace:
    """The choices of a network in its run's mode."""
    return SearchSpace(
        network.layers,
        network.topology.groups,
        network.config.search,
        fixed=network.topology.fixed,
        kept=network.kept,
        prune=network.config.mode != "quantize",
        quantize=network.quantized,
        float_bops=network.float_bops,
        device=network.device_cost(),
    )


def make_rule(ctx: Context, network: Network, space: SearchSpace, limits: Sequence[Limit], steps: int) -> GateRule:
    """The rule that `SearchConfig.metric` names, ready for the first step; the first limit is the target."""
    if ctx.config.search.metric == "loss":
        return LossRule(network, space, limits, steps, ctx.ranks)
    target = space.cost.reference / limits[0].most if limits else None
    rule = ThresholdRule(network, space, target, steps, ctx.ranks)
    rule.start(ctx)
    return rule


def _search(ctx: Context, stage: Stage, network: Network, space: SearchSpace, limits: Sequence[Limit]) -> Made:
    config, history = ctx.config.search, History()
    steps_per_epoch = config.steps_per_epoch or ctx.feed.steps_per_epoch
    steps = config.epochs * steps_per_epoch
    effort = _effort(ctx, steps) if limits else None
    # Before the search, whose decisions would leave their marks on the weights.
    rankings = _rankings(ctx, network, space, effort) if effort else {}
    rule = make_rule(ctx, network, space, limits, steps)
    best = Best(partial(_check_best, network))

    def end_epoch(epoch: int, scalars: dict[str, float]) -> dict[str, float]:
        view = rule.view()
        found = {"flips": scalars["flips"] * steps_per_epoch}
        if (epoch + 1) / config.epochs >= config.settle[0] or epoch + 1 == config.epochs:
            training = copy_state(network.model)
            plan = rule.plan()
            reestimate_batchnorm(ctx, network.model)
            val = evaluate(ctx, network.model, "val")
            best.offer(score_of(val)[1], epoch, lambda: {"model": copy_state(network.model), "plan": plan.model_dump()})
            load_state(network.model, training)
            found |= validated(val)
        history.rows.append({"epoch": epoch, **scalars, **found, **asdict(view)})
        _log_gates(ctx, history.rows[-1], epoch)
        return found

    teacher = teacher_of(ctx, network)
    with descent(ctx, network, optimizer_of(network, config, config.lr_clip), teacher) as down:

        def step(parts: Sequence[Batch], step: int) -> dict[str, Tensor]:
            penalty = rule.before(step)
            loss = down.step(parts, penalty=penalty, before_part=rule.before_part)
            return {"loss": loss, **rule.after(step, sum(map(ctx.feed.samples, parts)))}

        training = Training(
            model=network.model,
            optimizers=[(down.optimizer, warmed_up(config, constant)), *rule.optimizers],
            step=step,
            end_epoch=end_epoch,
            best=best,
            state={"history": history, **rule.state},
        )
        earlier_s = fit(ctx, stage, config, training)
    rule.plan()  # takes the rule's probes out of the network
    load_state(network.model, best.payload["model"])
    plan = Plan.model_validate(best.payload["plan"])
    apply_plan(network, plan)
    metrics: dict[str, Any] = {"history": history.rows}
    if effort:
        choices = Choices(network, space, limits)
        plan, table = Tournament(ctx, choices, effort, teacher).run(plan, rankings, rule.losses)
        metrics["tournament"] = table.model_dump()
    return Made(plan=plan, metrics=metrics, earlier_s=earlier_s)


def _check_best(network: Network, payload: dict[str, Any]) -> None:
    """Refuse the best plan of a checkpoint that is not of this network."""
    fitting_state("best", payload["model"], network.model.state_dict())
    Plan.model_validate(payload["plan"])


def _effort(ctx: Context, steps: int) -> Effort | None:
    """What the tournament of a search of so many steps does; None without one."""
    effort = Effort.after(steps) if ctx.config.search.tournament else None
    if ctx.config.search.tournament and effort is None:
        ctx.log(f"search: {steps} steps are too short for a tournament with simple plans")
    return effort


def _rankings(ctx: Context, network: Network, space: SearchSpace, effort: Effort) -> dict[str, Ranking]:
    """Importance of all blocks by the name of the ranking, before anything was pruned."""
    if not space.prunable:
        return {}
    return {"magnitude": by_magnitude(space), "Taylor": by_taylor(ctx, network.model.eval(), space, effort.batches)}


def _log_gates(ctx: Context, row: dict[str, Any], epoch: int) -> None:
    """Bits of every layer, kept channels of every group and the margins of all gates, as TensorBoard scalars."""
    ctx.scalars(
        {f"{kind}/{n}": value for kind in ("bits_w", "bits_a", "kept") for n, value in row[kind].items()}, epoch
    )
    ctx.scalars({f"margin/{n}/{i}": m for n, margins in row["margins"].items() for i, m in enumerate(margins)}, epoch)
