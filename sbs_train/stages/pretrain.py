"""Stage 1: train the float network, or take the weights a user brings."""

from sbs_train.contract import rundir
from sbs_train.contract.config import to_dict
from sbs_train.stages.context import Context, Stopwatch
from sbs_train.stages.loop import decayed, evaluate, reestimate_batchnorm
from sbs_train.stages.plans import Network
from sbs_train.stages.supervised import train_supervised
from sbs_train.stages.weights import finish, is_finished, load_float_weights, save_weights, stage_files


def pretrain(ctx: Context, network: Network) -> str:
    """Leave the float weights in checkpoints/fp32.safetensors and in `network`; returns their hash."""
    config = ctx.config
    path, _ = stage_files(ctx.run, "fp32")
    made_from = {"settings": _settings(ctx)}
    if config.weights is not None:
        made_from["weights"] = rundir.sha256_of(config.weights)
    if is_finished(ctx.run, "fp32", made_from):
        ctx.log("pretrain: up to date")
        load_float_weights(network, path)
        return rundir.sha256_of(path)
    watch = Stopwatch()
    model = network.model
    if config.weights is not None:
        load_float_weights(network, config.weights)
    elif config.pretrain.epochs:
        clips = {id(clip) for clip in network.clip_values()}
        groups = decayed(model, config.pretrain, exclude=clips)
        train_supervised(ctx, "pretrain", config.pretrain, network, groups, settings=rundir.hash_of(made_from))
    else:
        reestimate_batchnorm(ctx, model)
    save_weights(network.float_state(), path)
    metrics = evaluate(ctx.data, model, ctx.data.test)
    ctx.record("fp32", metrics, watch.seconds)
    finish(ctx.run, "fp32", made_from)
    ctx.log(f"pretrain: test top-1 {metrics['top1']:.2f} %")
    return rundir.sha256_of(path)


def _settings(ctx: Context) -> str:
    value = to_dict(ctx.config)
    keys = ("model", "width", "data", "data_dir", "seed", "batch_size", "pretrain")
    return rundir.hash_of({key: value[key] for key in keys})
