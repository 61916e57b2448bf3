"""Stage 4: weights and clip values go on learning, the plan frozen."""

from sbs_train.contract import rundir
from sbs_train.contract.config import to_dict
from sbs_train.contract.plan import Plan, load_plan, save_plan
from sbs_train.stages.context import Context, Stopwatch
from sbs_train.stages.loop import decayed, evaluate
from sbs_train.stages.plans import Network, apply_plan, plan_of_network
from sbs_train.stages.snap import snap_biases
from sbs_train.stages.supervised import train_supervised
from sbs_train.stages.weights import finish, is_finished, load_weights, maker_of, save_weights, stage_files


def finetune(ctx: Context, network: Network, found: Plan) -> Plan:
    """Leave plan.json and weights.safetensors of the run; returns the plan with its final clip values."""
    weights, plan_path = stage_files(ctx.run, "finetune")
    assert plan_path is not None
    searched = ctx.ranks.on_first(lambda: rundir.sha256_of(stage_files(ctx.run, "search")[0]))
    made_from = {"search": searched, "settings": _settings(ctx)}
    if ctx.ranks.on_first(lambda: is_finished(ctx.run, "finetune", made_from)):
        ctx.log("finetune: up to date")
        ctx.ranks.on_first(lambda: load_weights(network.model, weights, maker_of(ctx.run)))
        ctx.ranks.share(network.model)
        return ctx.ranks.on_first(lambda: load_plan(plan_path))
    watch, earlier_s = Stopwatch(), 0.0
    apply_plan(network, found)
    if ctx.config.finetune.epochs:
        earlier_s = train_frozen(ctx, network, settings=rundir.hash_of(made_from))
    kept = {group.id: group.kept for group in found.groups}
    plan = plan_of_network(network, kept)
    if network.quantized:
        snap_biases(network, plan)
    metrics = evaluate(ctx.data, network.model, ctx.data.test, ctx.ranks)

    def write() -> None:
        save_plan(plan, plan_path)
        save_weights(network.model.state_dict(), weights)
        ctx.record("finetune", metrics, earlier_s + watch.seconds)
        finish(ctx.run, "finetune", made_from)

    ctx.ranks.on_first(write)
    ctx.log(f"finetune: test top-1 {metrics['top1']:.2f} %")
    return plan


def train_frozen(ctx: Context, network: Network, *, settings: str) -> float:
    """Plain quantization-aware training of a frozen network with learned clip values.

    Returns the seconds that earlier sessions spent on it.
    """
    config = ctx.config.finetune
    clips = network.clip_values()
    groups = decayed(network.model, config, exclude={id(clip) for clip in clips})
    groups.append({"params": clips, "lr": config.lr_clip, "weight_decay": 0.0})
    return train_supervised(ctx, "finetune", config, network, groups, settings=settings, ema=config.ema)


def _settings(ctx: Context) -> str:
    value = to_dict(ctx.config)
    return rundir.hash_of({key: value[key] for key in ("seed", "batch_size", "finetune")})
