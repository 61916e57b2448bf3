"""Stage 1: train the float network, or take the weights a user brings."""

import torch.nn.functional as F
from torch import Tensor

from sbs_train.contract import rundir
from sbs_train.contract.config import to_dict
from sbs_train.stages.context import Context
from sbs_train.stages.loop import Best, copy_state, cosine, decayed, evaluate, fit, reestimate_batchnorm, sgd
from sbs_train.stages.plans import Network
from sbs_train.stages.weights import load_float_weights, save_weights, stage_files


def pretrain(ctx: Context, network: Network) -> str:
    """Leave the float weights in checkpoints/fp32.safetensors and in `network`; returns their hash."""
    config = ctx.config
    path, _ = stage_files(ctx.run, "fp32")
    made_from = {"settings": _settings(ctx)}
    if config.weights is not None:
        made_from["weights"] = rundir.sha256_of(config.weights)
    if rundir.is_current(path, made_from):
        ctx.log("pretrain: up to date")
        load_float_weights(network, path)
        return rundir.sha256_of(path)
    with ctx.timed() as watch:
        model = network.model
        if config.weights is not None:
            load_float_weights(network, config.weights)
        elif config.pretrain.epochs:
            _train(ctx, network, rundir.hash_of(made_from))
        else:
            reestimate_batchnorm(ctx, model)
        save_weights(network.float_state(), path)
        rundir.write_manifest(path, made_from)
        metrics = evaluate(ctx.data, model, ctx.data.test)
        ctx.record("fp32", metrics, watch.seconds)
    ctx.log(f"pretrain: test top-1 {metrics['top1']:.2f} %")
    return rundir.sha256_of(path)


def _train(ctx: Context, network: Network, settings: str) -> None:
    config = ctx.config.pretrain
    clips = {id(clip) for clip in network.clip_values()}
    model, optimizer = ctx.fabric.setup(network.model, sgd(decayed(network.model, config, clips), config))
    best = Best()

    def train_step(x_NCHW: Tensor, y_N: Tensor, step: int) -> dict[str, Tensor]:
        loss = F.cross_entropy(model(x_NCHW), y_N)
        optimizer.zero_grad()
        ctx.fabric.backward(loss)
        optimizer.step()
        return {"loss": loss.detach()}

    def end_epoch(epoch: int) -> dict[str, float]:
        val = evaluate(ctx.data, model, ctx.data.val)
        best.offer(val["top1"], epoch, lambda: copy_state(network.model))
        return {"val_top1": val["top1"], "val_loss": val["loss"]}

    fit(
        ctx,
        "pretrain",
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


def _settings(ctx: Context) -> str:
    value = to_dict(ctx.config)
    keys = ("model", "width", "data", "seed", "batch_size", "pretrain")
    return rundir.hash_of({key: value[key] for key in keys})
