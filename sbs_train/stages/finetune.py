"""Stage 4: weights and clip values go on learning, the plan frozen."""

import torch.nn.functional as F
from torch import Tensor

from sbs_train.contract import rundir
from sbs_train.contract.config import to_dict
from sbs_train.contract.plan import Plan, load_plan, save_plan
from sbs_train.stages.context import Context
from sbs_train.stages.loop import Best, copy_state, cosine, decayed, evaluate, fit, sgd
from sbs_train.stages.plans import Network, apply_plan, plan_of_network
from sbs_train.stages.snap import snap_biases
from sbs_train.stages.weights import load_weights, save_weights, stage_files


def finetune(ctx: Context, network: Network, found: Plan) -> Plan:
    """Leave plan.json and weights.safetensors of the run; returns the plan with its final clip values."""
    weights, plan_path = stage_files(ctx.run, "finetune")
    assert plan_path is not None
    made_from = {"search": rundir.sha256_of(stage_files(ctx.run, "search")[0]), "settings": _settings(ctx)}
    if rundir.is_current(weights, made_from):
        ctx.log("finetune: up to date")
        load_weights(network.model, weights)
        return load_plan(plan_path)
    with ctx.timed() as watch:
        apply_plan(network, found)
        if ctx.config.finetune.epochs:
            train_frozen(ctx, network, settings=rundir.hash_of(made_from))
        kept = {group.id: group.kept for group in found.groups}
        plan = plan_of_network(network, kept)
        if network.quantized:
            snap_biases(network, plan)
        metrics = evaluate(ctx.data, network.model, ctx.data.test)
        save_plan(plan, plan_path)
        save_weights(network.model.state_dict(), weights)
        ctx.record("finetune", metrics, watch.seconds)
        rundir.write_manifest(weights, made_from, details={"plan": rundir.sha256_of(plan_path)})
    ctx.log(f"finetune: test top-1 {metrics['top1']:.2f} %")
    return plan


def train_frozen(ctx: Context, network: Network, *, settings: str) -> Best:
    """Plain quantization-aware training of a frozen network with learned clip values; the best epoch is kept."""
    config = ctx.config.finetune
    clips = network.clip_values()
    groups = decayed(network.model, config, {id(clip) for clip in clips})
    groups.append({"params": clips, "lr": config.lr_clip, "weight_decay": 0.0})
    model, optimizer = ctx.fabric.setup(network.model, sgd(groups, config))
    best = Best()

    def train_step(x_NCHW: Tensor, y_N: Tensor, step: int) -> dict[str, Tensor]:
        loss = F.cross_entropy(model(x_NCHW), y_N)
        optimizer.zero_grad()
        ctx.fabric.backward(loss)
        optimizer.step()
        network.clamp_clips()
        return {"loss": loss.detach()}

    def end_epoch(epoch: int) -> dict[str, float]:
        val = evaluate(ctx.data, network.model, ctx.data.val)
        best.offer(val["top1"], epoch, lambda: copy_state(network.model))
        return {"val_top1": val["top1"], "val_loss": val["loss"]}

    fit(
        ctx,
        "finetune",
        config,
        model=network.model,
        optimizers=[(optimizer, cosine)],
        train_step=train_step,
        end_epoch=end_epoch,
        best=best,
        state={},
        settings=settings,
    )
    network.model.load_state_dict(best.payload)
    network.model.eval()
    return best


def _settings(ctx: Context) -> str:
    value = to_dict(ctx.config)
    return rundir.hash_of({key: value[key] for key in ("seed", "batch_size", "finetune")})
