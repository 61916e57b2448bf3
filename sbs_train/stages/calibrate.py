"""Stage 2: clip values to start from, out of real inputs; decides which inputs take negative values."""

from typing import Any

import torch
from torch import Tensor, nn

from calib import ranges
from calib.collect import collect_inputs
from sbs_train.contract import rundir
from sbs_train.contract.config import DATA_FIELDS, CalibrateConfig, to_dict
from sbs_train.contract.errors import SbsError
from sbs_train.contract.grid import Level
from sbs_train.contract.plan import FIXED_BITS
from sbs_train.quant.interception import Place, intercept_additions
from sbs_train.stages.context import Context
from sbs_train.stages.loop import epoch_seed
from sbs_train.stages.plans import Network


@torch.no_grad()
def calibrate(ctx: Context, network: Network, fp32: str) -> str:
    """Set the grids and clip values of `network`; returns the hash of checkpoints/calibration.json.

    Raises:
        SbsError: the network's activations are not finite.
    """
    path = ctx.run.checkpoints / "calibration.json"
    config = ctx.config
    keys = ("calibrate", *DATA_FIELDS, "batch_size", "grid", "mode", "seed")
    settings = {key: value for key, value in to_dict(config).items() if key in keys}
    settings |= {
        "adds": network.adds.count,
        "candidates": network.candidates(),
        "standardise": config.search.standardise,
    }
    if not config.search.epochs:
        settings["equalised"] = True  # other weights than the checkpoint's: `stages/equalise.py`
    made_from = {"fp32": fp32, "settings": rundir.hash_of(settings)}

    def find() -> tuple[dict[str, Any], str]:
        if not rundir.is_current(path, made_from):
            rundir.write_json(path, _estimate(ctx, network, config.calibrate))
            rundir.write_manifest(path, made_from)
        return rundir.read_json(path), rundir.sha256_of(path)

    # It takes seconds: rank 0 looks at whole batches, so that the clip values are those of a single process.
    found, made = ctx.ranks.on_first(find)
    if network.quantized:
        _apply(network, found, config.calibrate)
    return made


def _apply(network: Network, found: dict[str, Any], config: CalibrateConfig) -> None:
    layers, adds = found["layers"], found["adds"]
    signed_adds = [(pair[0]["signed"], pair[1]["signed"]) for pair in adds]
    network.set_grids({name: row["signed"] for name, row in layers.items()}, signed_adds)
    for name, layer in network.layers.items():
        layer.set_clips(layers[name]["clips_w"], layers[name]["clips_a"])
    for index, pair in enumerate(adds):
        network.adds.clip_lhs[index], network.adds.clip_rhs[index] = pair[0]["clip"], pair[1]["clip"]


def _estimate(ctx: Context, network: Network, config: CalibrateConfig) -> dict[str, Any]:
    seed = epoch_seed(ctx.config.seed, "calibrate", 0)
    whole = ctx.data.placed(ctx.fabric.device)
    images = (x_NCHW for x_NCHW, _ in whole.train_batches(ctx.config.batch_size, seed, config.batches))
    adds = {place: (ranges.Samples(), ranges.Samples()) for place in network.adds.places}

    def watch(model: nn.Module, x_NCHW: Tensor) -> Tensor:
        with intercept_additions(model, observe, adds):
            result: Tensor = model(x_NCHW)
            return result

    def observe(place: Place, lhs: Tensor, rhs: Tensor) -> tuple[Tensor, Tensor]:
        adds[place][0].update(lhs.float().cpu().numpy())
        adds[place][1].update(rhs.float().cpu().numpy())
        return lhs, rhs

    try:
        samples = collect_inputs(network.model, network.layers, images, run=watch)
    except ValueError as error:
        raise SbsError(f"calibrate: {error}; check --weights and --data") from error
    return {
        "layers": {name: _row(network, name, seen, config) for name, seen in samples.items()},
        "adds": [[_operand(network, seen, config) for seen in pair] for pair in adds.values()],
    }


def _row(network: Network, name: str, samples: ranges.Samples, config: CalibrateConfig) -> dict[str, Any]:
    """Clip values of a layer, one for every candidate bitwidth: of its input, and of its weights in deviations."""
    if not network.quantized:
        return {"signed": samples.signed}
    grid_w, grid_a = network.grids(name, samples.signed)
    weight = network.layers[name].centred_weight()
    weights = ranges.Samples()
    # A constant weight, or a single one, has no deviation.
    weights.update((weight / weight.std(correction=0).clamp_min(1e-12)).cpu().numpy())
    return {
        "signed": samples.signed,
        "clips_a": [_clip(samples, level, config) for level in grid_a.levels],
        "clips_w": [
            _clip(weights, level, config) if config.method == "mse" else config.weight_sigmas for level in grid_w.levels
        ],
    }


def _operand(network: Network, samples: ranges.Samples, config: CalibrateConfig) -> dict[str, Any]:
    level = network.add_grid(samples.signed).level(FIXED_BITS)
    return {"signed": samples.signed, "clip": _clip(samples, level, config)}


def _clip(samples: ranges.Samples, level: Level, config: CalibrateConfig) -> float:
    if config.method == "mse":
        clip = ranges.mse(samples, level.steps, odd=level.odd)
    elif config.method == "percentile":
        clip = ranges.percentile(samples, config.percentile)
    else:
        clip = ranges.min_max(samples)
    return max(clip, 1e-6)
