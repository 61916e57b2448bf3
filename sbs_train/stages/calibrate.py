"""Stage 2: first clip values from real inputs, and which inputs take negative values."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from calib import ranges
from calib.collect import collect_inputs
from sbs_train.contract import rundir
from sbs_train.contract.config import DATA_FIELDS, CalibrateConfig
from sbs_train.contract.cost import INT8_BITS
from sbs_train.contract.documents import read_record
from sbs_train.contract.errors import SbsError
from sbs_train.contract.grid import Grid, Level
from sbs_train.contract.records import Calibration
from sbs_train.example import Example
from sbs_train.network.network import Network
from sbs_train.quant.interception import Place, intercept_additions
from sbs_train.quant.layers import CLIP_MIN, SBSLayer
from sbs_train.quant.scale import weight_scale
from sbs_train.stages.context import Context, Stage
from sbs_train.stages.loop import epoch_seed
from sbs_train.stages.runner import Made, output_hash, run_stage, settings_hash
from sbs_train.stages.weights import maker_of, stage_files

SETTINGS = ("calibrate", *DATA_FIELDS, "batch_size", "grid", "mode", "seed")
LIKELY = 4095
"""Number of normal quantiles that stand in for weights that are all zero."""


@torch.no_grad()
def calibrate(ctx: Context, network: Network) -> None:
    """Write checkpoints/calibration.json, and set the grids and clip values of `network`.

    Raises:
        SbsError: the network's activations are not finite.
    """
    path, _ = stage_files(ctx.run, "calibration")
    config = ctx.config
    more = {"adds": network.adds.count, "candidates": network.candidates(), "standardise": config.search.standardise}
    if not config.search.epochs:
        more["equalised"] = True  # `equalise_filters` changed the weights
    made_from = {"fp32": output_hash(ctx, "fp32"), "settings": settings_hash(ctx, SETTINGS, **more)}
    stage = Stage(name="calibrate", output="calibration", made_from=made_from)
    # Rank 0 alone reads whole batches (seconds), so that clip values do not depend on the number of processes.
    made = Made(write=lambda path: rundir.write_json(path, _estimate(ctx, network, config.calibrate)))
    run_stage(ctx, stage, lambda: made)

    def read() -> Calibration:
        remedy = f"delete it, and make it again with `{maker_of(ctx.run)}`"
        found = read_record(path, Calibration, remedy, sha256=rundir.read_manifest(path).sha256)
        if network.quantized:
            _check_fits(path, network, found, remedy)
        return found

    found = ctx.ranks.on_first(read)
    if network.quantized:
        _apply(network, found)


def _check_fits(path: Path, network: Network, found: Calibration, remedy: str) -> None:
    """SbsError for clip values of another network, or of other bitwidths."""
    fits = found.layers.keys() >= network.layers.keys() and len(found.adds) == network.adds.count
    for name in network.layers if fits else ():
        row = found.layers[name]
        grid_w, grid_a = network.grids(name, row.signed)
        fits = fits and len(row.clips_w) == len(grid_w.levels) and len(row.clips_a) == len(grid_a.levels)
    if not fits:
        raise SbsError(f"{path}: its layers, clips or adds are not those of this network; {remedy}")


def _apply(network: Network, found: Calibration) -> None:
    signed_adds = [(lhs.signed, rhs.signed) for lhs, rhs in found.adds]
    network.set_grids({name: row.signed for name, row in found.layers.items()}, signed_adds)
    for name, layer in network.layers.items():
        layer.set_clips(found.layers[name].clips_w, found.layers[name].clips_a)
    for index, (lhs, rhs) in enumerate(found.adds):
        network.adds.clip_lhs[index], network.adds.clip_rhs[index] = lhs.clip, rhs.clip


def _estimate(ctx: Context, network: Network, config: CalibrateConfig) -> dict[str, Any]:
    seed = epoch_seed(ctx.config.seed, "calibrate", 0)
    examples = ctx.feed.whole.examples(seed, config.batches)
    adds = {place: (ranges.Samples(), ranges.Samples()) for place in network.adds.places}

    def watch(model: nn.Module, example: Example) -> Any:
        with intercept_additions(model, observe, adds):
            return example.run(model)

    def observe(place: Place, lhs: Tensor, rhs: Tensor) -> tuple[Tensor, Tensor]:
        adds[place][0].update(lhs.float().cpu().numpy())
        adds[place][1].update(rhs.float().cpu().numpy())
        return lhs, rhs

    try:
        samples = collect_inputs(network.model, network.layers, examples, run=watch)
    except ValueError as error:
        raise SbsError(f"calibrate: {error}; check --weights and --data") from error
    return {
        "layers": {name: _row(network, name, seen, config) for name, seen in samples.items()},
        "adds": [[_operand(network, seen, config) for seen in pair] for pair in adds.values()],
    }


def _row(network: Network, name: str, samples: ranges.Samples, config: CalibrateConfig) -> dict[str, Any]:
    """Clip values of a layer's input and weights, by candidate bitwidth; for weights in units of their scale."""
    if not network.quantized:
        return {"signed": samples.signed}
    grid_w, grid_a = network.grids(name, samples.signed)
    return {
        "signed": samples.signed,
        "clips_a": [_clip(samples, level, config) for level in grid_a.levels],
        "clips_w": weight_clips(network.layers[name], grid_w, config),
    }


def weight_clips(layer: SBSLayer, grid: Grid, config: CalibrateConfig) -> list[float]:
    """First clip value of a layer's weights for every level, in units of their scale."""
    if config.method != "mse":
        return [config.weight_sigmas] * len(grid.levels)
    weight, samples = layer.centred_weight().detach(), ranges.Samples()
    # Weights of zero most likely grow into a normal distribution, as most weights do.
    likely = torch.special.ndtri(torch.linspace(0, 1, LIKELY + 2)[1:-1])
    samples.update((weight / weight_scale(layer.weight, 0) if weight.any() else likely).cpu().numpy())
    return [_clip(samples, level, config) for level in grid.levels]


def _operand(network: Network, samples: ranges.Samples, config: CalibrateConfig) -> dict[str, Any]:
    level = network.add_grid(samples.signed).level(INT8_BITS)
    return {"signed": samples.signed, "clip": _clip(samples, level, config)}


def _clip(samples: ranges.Samples, level: Level, config: CalibrateConfig) -> float:
    if config.method == "mse":
        clip = ranges.mse(samples, level.steps, odd=level.odd)
    elif config.method == "percentile":
        clip = ranges.percentile(samples, config.percentile)
    else:
        clip = ranges.min_max(samples)
    # Only zeros were seen, exact at any clip value: leave room for the values that training will bring.
    return max(clip, CLIP_MIN) if clip else 1.0
