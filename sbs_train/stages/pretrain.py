"""Stage 1: train the float network, or take the weights a user brings."""

from pathlib import Path

from sbs_train.contract import rundir
from sbs_train.contract.config import DATA_FIELDS, to_dict
from sbs_train.inputs.zoo import brings_weights, load_published
from sbs_train.stages.context import Context, Stopwatch
from sbs_train.stages.loop import decayed, evaluate, reestimate_batchnorm
from sbs_train.stages.plans import Network
from sbs_train.stages.supervised import train_supervised
from sbs_train.stages.weights import finish, is_finished, load_float_weights, maker_of, save_weights, stage_files

SETTLED = 50
"""Steps after which little is left (0.9 to that power) of what BatchNorm's running statistics started from."""


def pretrain(ctx: Context, network: Network) -> str:
    """Leave the float weights in checkpoints/fp32.safetensors and in `network`; returns their hash."""
    config = ctx.config
    path, _ = stage_files(ctx.run, "fp32")
    made_from = {"settings": _settings(ctx)}
    if config.weights is not None:
        given = config.weights
        made_from["weights"] = ctx.ranks.on_first(lambda: rundir.sha256_of(given))
    if ctx.ranks.on_first(lambda: is_finished(ctx.run, "fp32", made_from)):
        ctx.log("pretrain: up to date")
        _load(ctx, network, path, maker_of(ctx.run))
        return ctx.ranks.on_first(lambda: rundir.read_manifest(path).sha256)
    watch, earlier_s = Stopwatch(), 0.0
    model = network.model
    if config.weights is not None:
        _load(ctx, network, config.weights)
    elif config.pretrained:
        left = ctx.ranks.on_first(lambda: load_published(model, config.model))
        ctx.ranks.share(model)
        if left:
            ctx.log(f"pretrain: published weights do not fit {', '.join(left)}, which start anew")
    if config.weights is None and config.pretrain.epochs:
        clips = {id(clip) for clip in network.clip_values()}
        groups = decayed(model, config.pretrain, exclude=clips)
        settings = rundir.hash_of(made_from)
        earlier_s = train_supervised(ctx, "pretrain", config.pretrain, network, groups, settings=settings)
        steps = config.pretrain.epochs * (
            config.pretrain.steps_per_epoch or ctx.data.steps_per_epoch(config.batch_size)
        )
        if steps < SETTLED:
            reestimate_batchnorm(ctx, model)
    elif config.weights is None and not (config.pretrained or brings_weights(config.model)):
        reestimate_batchnorm(ctx, model)  # random weights: their own statistics are as good as any
    metrics = evaluate(ctx.data, model, ctx.data.test, ctx.ranks)

    def write() -> str:
        save_weights(network.float_state(), path)
        ctx.record("fp32", metrics, earlier_s + watch.seconds)
        finish(ctx.run, "fp32", made_from)
        return rundir.read_manifest(path).sha256

    made = ctx.ranks.on_first(write)
    ctx.log(f"pretrain: test top-1 {metrics['top1']:.2f} %")
    return made


def _load(ctx: Context, network: Network, path: Path, made_by: str | None = None) -> None:
    ctx.ranks.on_first(lambda: load_float_weights(network, path, made_by))
    ctx.ranks.share(network.model)


def _settings(ctx: Context) -> str:
    value = to_dict(ctx.config)
    keys = ("model", "width", "pretrained", *DATA_FIELDS, "seed", "batch_size", "pretrain")
    return rundir.hash_of({key: value[key] for key in keys})
