"""Stage 3: weights, clip values and gate thresholds learn together until the plan fits the budget.

    loss = cross-entropy + lambda * log(BOPs)

Towards the end of every late epoch the gates are projected onto the budget and the plan that follows is validated;
the best one is frozen, not the last.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sbs_train.contract import rundir
from sbs_train.contract.config import SearchConfig, target_reduction, to_dict
from sbs_train.contract.plan import Plan, load_plan, save_plan
from sbs_train.quant.gates import GateBank
from sbs_train.stages.budget import Controller
from sbs_train.stages.context import Context, Stopwatch
from sbs_train.stages.freeze import freeze_gates, reachable_reductions
from sbs_train.stages.loop import (
    Best,
    Shape,
    constant,
    copy_state,
    decayed,
    epoch_seed,
    evaluate,
    fit,
    reestimate_batchnorm,
    sgd,
)
from sbs_train.stages.plans import Network, apply_plan
from sbs_train.stages.weights import finish, is_finished, load_weights, save_weights, stage_files

METRIC_BATCHES = 30
RAMP_START = 16.0
"""The reduction at which the controller's ramp starts: every layer at 8 bits."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the search ends with."""

    plan: Plan
    wanted: float
    """The reduction that was asked for."""
    reachable: tuple[float, float]
    """Reductions of the most and the least expensive plan."""

    @property
    def reached(self) -> bool:
        """Whether the plan fits the budget; one that could not be made more expensive fits as well."""
        return self.plan.cost.reduction >= self.wanted * (1 - 1e-6)


def search(ctx: Context, network: Network, calibration: str) -> Found:
    """Leave the plan and its weights in checkpoints/search.* and in `network`."""
    config = ctx.config
    weights, plan_path = stage_files(ctx.run, "search")
    assert plan_path is not None
    made_from = {"calibration": calibration, "settings": _settings(ctx)}
    bank = make_bank(network)
    wanted = target_reduction(config.target, network.bops_fp32)
    low, high = reachable_reductions(bank, network.bops_fp32)
    if is_finished(ctx.run, "search", made_from):
        ctx.log("search: up to date")
        plan = load_plan(plan_path)
        load_weights(network.model, weights)
        apply_plan(network, plan)
    else:
        if wanted > high:
            ctx.log(f"search: {wanted:.4g}x cannot be reached (at most {high:.4g}x); going as far as it can")
        watch = Stopwatch()
        plan = _search(ctx, network, bank, min(max(wanted, low), high), rundir.hash_of(made_from))
        metrics = evaluate(ctx.data, network.model, ctx.data.test)
        save_plan(plan, plan_path)
        save_weights(network.model.state_dict(), weights)
        ctx.record("search", metrics, watch.seconds)
        finish(ctx.run, "search", made_from)
        ctx.log(f"search: {plan.cost.reduction:.1f}x, test top-1 {metrics['top1']:.2f} % before fine-tuning")
    return Found(plan=plan, wanted=wanted, reachable=(low, high))


def make_bank(network: Network) -> GateBank:
    """The gates of a network in its run's mode."""
    return GateBank(
        network.layers,
        network.topology.groups,
        network.config.search,
        fixed=network.topology.fixed,
        prune=network.config.mode != "quantize",
        quantize=network.quantized,
    )


def _search(ctx: Context, network: Network, bank: GateBank, target: float, settings: str) -> Plan:
    config = ctx.config.search
    clips = network.clip_values()
    groups = decayed(network.model, config, {id(clip) for clip in clips})
    groups.append({"params": clips, "lr": config.lr_clip, "weight_decay": 0.0})
    model, optimizer = ctx.fabric.setup(network.model, sgd(groups, config))
    rates = [
        {"params": [bank.alpha_w, bank.alpha_a], "lr": config.lr_threshold},
        {"params": [bank.alpha_p], "lr": config.lr_pruning},
    ]
    thresholds = torch.optim.Adam(rates, betas=(0.9, 0.99))
    dense = network.bops_fp32
    controller = Controller(start=min(RAMP_START, target), target=target)
    steps = config.epochs * (config.steps_per_epoch or ctx.data.steps_per_epoch(ctx.config.batch_size))
    best = Best()

    _start_metrics(ctx, network, bank)

    def train_step(x_NCHW: Tensor, y_N: Tensor, step: int) -> dict[str, Tensor]:
        take_turns(bank, config, step)
        _gather_metrics(network, bank, True)
        gates = bank()
        weight = controller.value if config.lambda_ is None else config.lambda_
        ce = F.cross_entropy(model(x_NCHW), y_N)
        loss = ce + weight * torch.log(gates.bops)
        optimizer.zero_grad()
        thresholds.zero_grad()
        ctx.fabric.backward(loss)
        optimizer.step()
        thresholds.step()
        bank.clamp()
        network.clamp_clips()
        reduction = dense / gates.bops.detach()
        controller.update(float(reduction), step / steps)
        return {"loss": ce.detach(), "lambda": torch.tensor(weight), "reduction": reduction}

    def end_epoch(epoch: int) -> dict[str, float]:
        _gather_metrics(network, bank, False)
        _log_gates(ctx, bank, epoch)
        if (epoch + 1) / config.epochs < config.settle[0] and epoch + 1 < config.epochs:
            return {}
        training = copy_state(network.model)
        plan = freeze_gates(network, bank, target)
        reestimate_batchnorm(ctx, network.model)
        val = evaluate(ctx.data, network.model, ctx.data.val)
        best.offer(val["top1"], epoch, lambda: {"model": copy_state(network.model), "plan": plan.model_dump()})
        network.model.load_state_dict(training)
        return {"val_top1": val["top1"], "val_loss": val["loss"]}

    fit(
        ctx,
        "search",
        config,
        model=network.model,
        optimizers=[(optimizer, constant), (thresholds, settling(config))],
        train_step=train_step,
        end_epoch=end_epoch,
        best=best,
        state={"gates": bank, "controller": controller},
        settings=settings,
    )
    _gather_metrics(network, bank, False)
    network.model.load_state_dict(best.payload["model"])
    plan = Plan.model_validate(best.payload["plan"])
    apply_plan(network, plan)
    return plan


def settling(config: SearchConfig) -> Shape:
    """The thresholds' learning rate: constant, then down to 0 over `config.settle`, so that the gates come to rest."""
    first, last = config.settle

    def shape(fraction: float) -> float:
        return min(1.0, max(0.0, (last - fraction) / (last - first)))

    return shape


def take_turns(bank: GateBank, config: SearchConfig, step: int) -> None:
    """Let weight and pruning thresholds learn on even steps, activation thresholds on odd ones, or all on all."""
    # Before the forward pass: a threshold that needs no gradient there would never move.
    even = step % 2 == 0
    bank.alpha_w.requires_grad_(even or not config.alternate)
    bank.alpha_p.requires_grad_(even or not config.alternate)
    bank.alpha_a.requires_grad_(not even or not config.alternate)


@torch.no_grad()
def _start_metrics(ctx: Context, network: Network, bank: GateBank) -> None:
    """Measure every quantization error at the start and make it the unit of its gate.

    A tensor with many zeros, such as the output of a ReLU, has a small error at any bitwidth. In common units its gates
    would close before those of the weights, whatever the loss says; activations need the bits more.
    """
    _gather_metrics(network, bank, True)
    network.model.eval()
    seed = epoch_seed(ctx.config.seed, "metrics", 0)
    for x_NCHW, _ in ctx.data.train_batches(ctx.config.batch_size, seed, METRIC_BATCHES):
        network.model(x_NCHW)
    for name in bank.searched:
        network.layers[name].normalise_metrics()


def _gather_metrics(network: Network, bank: GateBank, on: bool) -> None:
    for name in bank.searched:
        network.layers[name].gather_metrics = on


def _log_gates(ctx: Context, bank: GateBank, epoch: int) -> None:
    """Bits of every layer and kept channels of every group, as TensorBoard scalars."""
    with torch.no_grad():
        gates = bank()
    for index, name in enumerate(bank.layers):
        ctx.writer.add_scalar(f"bits_w/{name}", gates.bits_w_L[index], epoch)
        ctx.writer.add_scalar(f"bits_a/{name}", gates.bits_a_L[index], epoch)
    for index, group in enumerate(bank.prunable):
        ctx.writer.add_scalar(f"kept/{group.id}", gates.kept_P[index] * group.size, epoch)


def _settings(ctx: Context) -> str:
    value = to_dict(ctx.config)
    return rundir.hash_of({key: value[key] for key in ("target", "mode", "grid", "seed", "batch_size", "search")})
