"""First clip values of all quantizers, from real inputs without labels."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from calib import ranges
from calib.collect import collect_inputs
from sbs_train.contract.config import CalibrateConfig
from sbs_train.contract.cost import INT8_BITS
from sbs_train.contract.grid import Grid, Level
from sbs_train.contract.records import Calibration
from sbs_train.example import Example
from sbs_train.network.network import Network
from sbs_train.quant.interception import Place, intercept_additions
from sbs_train.quant.layers import CLIP_MIN, SBSLayer
from sbs_train.quant.scale import weight_scale

LIKELY = 4095
"""Number of normal quantiles that stand in for weights that are all zero."""


@torch.no_grad()
def first_clips(network: Network, examples: Iterable[Example], config: CalibrateConfig) -> Calibration:
    """Clip values and signs of every layer's input and of every addition's operands; the network does not change.

    Args:
        examples: inputs, on the network's device.

    Raises:
        ValueError: an activation is not finite, or there is no batch.
    """
    adds = {place: (ranges.Samples(), ranges.Samples()) for place in network.adds.places}

    def watch(model: nn.Module, example: Example) -> Any:
        with intercept_additions(model, observe, adds):
            return example.run(model)

    def observe(place: Place, lhs: Tensor, rhs: Tensor) -> tuple[Tensor, Tensor]:
        adds[place][0].update(lhs.float().cpu().numpy())
        adds[place][1].update(rhs.float().cpu().numpy())
        return lhs, rhs

    samples = collect_inputs(network.model, network.layers, examples, run=watch)
    if unseen := [name for name, seen in samples.items() if seen.minimum > seen.maximum]:
        raise ValueError(f"{unseen[0]} never ran; calibrate with inputs that reach it")
    return Calibration.model_validate(
        {
            "layers": {name: _row(network, name, seen, config) for name, seen in samples.items()},
            "adds": [[_operand(network, seen, config) for seen in pair] for pair in adds.values()],
        }
    )


def set_clips(network: Network, found: Calibration) -> None:
    """Turn the quantizers of a network on, with these clip values."""
    signed_adds = [(lhs.signed, rhs.signed) for lhs, rhs in found.adds]
    network.set_grids({name: row.signed for name, row in found.layers.items()}, signed_adds)
    for name, layer in network.layers.items():
        layer.set_clips(found.layers[name].clips_w, found.layers[name].clips_a)
    with torch.no_grad():
        for index, (lhs, rhs) in enumerate(found.adds):
            network.adds.clip_lhs[index], network.adds.clip_rhs[index] = lhs.clip, rhs.clip


def set_signs(network: Network, signed: Mapping[str, bool], signed_adds: Sequence[Sequence[bool]]) -> None:
    """Let the inputs of a network be signed as another calibration found them; clip values stay.

    Raises:
        ValueError: the names are of another network.
    """
    if signed.keys() != (network.layers.keys() if network.quantized else set()):
        raise ValueError("signed names other layers")
    if len(signed_adds) != len(network.adds.signed):
        raise ValueError("signed_adds has another number of additions")
    for name, layer in network.layers.items():
        if network.quantized and is_signed(layer) != signed[name]:
            state = {key: value.clone() for key, value in layer.state_dict().items()}
            layer.set_grids(*network.grids(name, signed[name]))
            layer.load_state_dict(state)
            if name in network.kept:
                layer.set_bits(network.kept[name], network.kept[name])
    network.adds.signed = [(bool(lhs), bool(rhs)) for lhs, rhs in signed_adds]


def is_signed(layer: SBSLayer) -> bool:
    """Whether the quantizer of a layer's input has negative levels."""
    return layer.grid_a is not None and layer.grid_a.role == "signed"


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


def release_unused(network: Network) -> None:
    """Take clip values that nothing uses out of training: DistributedDataParallel waits for every other gradient."""
    in_float = [layer for layer in network.layers.values() if layer.gates_w is None]
    unused = [clip for layer in in_float for clip in (layer.clip_w, layer.clip_a)]
    unused += [] if network.adds.enabled else [network.adds.clip_lhs, network.adds.clip_rhs]
    used = {id(layer.clip_a) for layer in network.layers.values() if layer.gates_w is not None}
    for clip in unused:
        if id(clip) not in used:
            clip.requires_grad_(False)
