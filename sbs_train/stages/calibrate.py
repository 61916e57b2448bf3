"""Stage 2: clip values to start from, out of real inputs; decides which inputs take negative values."""

from typing import Any

import torch

from calib import ranges
from calib.collect import collect_inputs
from sbs_train.contract import rundir
from sbs_train.contract.config import CalibrateConfig
from sbs_train.contract.errors import SbsError
from sbs_train.stages.context import Context
from sbs_train.stages.loop import epoch_seed
from sbs_train.stages.plans import Network

MSE_STEPS = 15
"""Method "mse" minimises the error at 4 bits, the middle candidate."""


@torch.no_grad()
def calibrate(ctx: Context, network: Network, fp32: str) -> str:
    """Set the grids and clip values of `network`; returns the hash of checkpoints/calibration.json.

    Raises:
        SbsError: the network's activations are not finite.
    """
    path = ctx.run.checkpoints / "calibration.json"
    config = ctx.config
    settings = {"calibrate": vars(config.calibrate), "grid": config.grid, "mode": config.mode, "seed": config.seed}
    made_from = {"fp32": fp32, "settings": rundir.hash_of(settings)}
    if not rundir.is_current(path, made_from):
        rundir.write_json(path, _estimate(ctx, network, config.calibrate))
        rundir.write_manifest(path, made_from)
    if network.quantized:
        found = rundir.read_json(path)
        network.set_grids({name: row["signed"] for name, row in found.items()})
        for name, layer in network.layers.items():
            layer.clip_a.fill_(found[name]["clip_a"])
            layer.clip_w.fill_(config.calibrate.weight_sigmas)
    return rundir.sha256_of(path)


def _estimate(ctx: Context, network: Network, config: CalibrateConfig) -> dict[str, Any]:
    seed = epoch_seed(ctx.config.seed, "calibrate", 0)
    batches = ctx.data.train_batches(ctx.config.batch_size, seed, config.batches)
    try:
        samples = collect_inputs(network.model, network.layers, (x_NCHW for x_NCHW, _ in batches))
    except ValueError as error:
        raise SbsError(f"calibrate: {error}; check --weights and --data") from error
    return {
        name: {"signed": seen.signed, "clip_a": max(_clip(seen, config), 1e-6), "max": ranges.min_max(seen)}
        for name, seen in samples.items()
    }


def _clip(samples: ranges.Samples, config: CalibrateConfig) -> float:
    if config.method == "percentile":
        return ranges.percentile(samples, config.percentile)
    return ranges.min_max(samples) if config.method == "min-max" else ranges.mse(samples, MSE_STEPS)
