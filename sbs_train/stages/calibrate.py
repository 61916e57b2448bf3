"""Stage 2: first clip values from real inputs, and which inputs take negative values."""

from pathlib import Path
from typing import Any

import torch

from sbs_train.contract import rundir
from sbs_train.contract.config import DATA_FIELDS, CalibrateConfig
from sbs_train.contract.documents import read_record
from sbs_train.contract.errors import SbsError
from sbs_train.contract.records import Calibration
from sbs_train.network.network import Network
from sbs_train.stages.clips import first_clips, set_clips
from sbs_train.stages.context import Context, Stage
from sbs_train.stages.loop import epoch_seed
from sbs_train.stages.runner import Made, output_hash, run_stage, settings_hash
from sbs_train.stages.weights import maker_of, stage_files

SETTINGS = ("calibrate", *DATA_FIELDS, "batch_size", "grid", "mode", "seed")


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
        set_clips(network, found)


def _check_fits(path: Path, network: Network, found: Calibration, remedy: str) -> None:
    """SbsError for clip values of another network, or of other bitwidths."""
    fits = found.layers.keys() >= network.layers.keys() and len(found.adds) == network.adds.count
    for name in network.layers if fits else ():
        row = found.layers[name]
        grid_w, grid_a = network.grids(name, row.signed)
        fits = fits and len(row.clips_w) == len(grid_w.levels) and len(row.clips_a) == len(grid_a.levels)
    if not fits:
        raise SbsError(f"{path}: its layers, clips or adds are not those of this network; {remedy}")


def _estimate(ctx: Context, network: Network, config: CalibrateConfig) -> dict[str, Any]:
    seed = epoch_seed(ctx.config.seed, "calibrate", 0)
    examples = ctx.feed.whole.examples(seed, config.batches)
    try:
        return first_clips(network, examples, config, lambda model, example: example.run(model)).model_dump(mode="json")
    except ValueError as error:
        raise SbsError(f"calibrate: {error}; check --weights and --data") from error
