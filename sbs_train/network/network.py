"""The trained network: a float model whose layers share bits, and its structure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sbs_train.contract import cost
from sbs_train.contract.config import SearchConfig, TrainConfig
from sbs_train.contract.cost import INT8_BITS
from sbs_train.contract.device import load_device
from sbs_train.contract.errors import SbsError
from sbs_train.contract.grid import Grid, activation_role, make_grid
from sbs_train.contract.latency import Latency, device_cost
from sbs_train.contract.plan import FLOAT_BITS, ModelSpec, TensorSpec, grid_bits
from sbs_train.example import Example, specs_of
from sbs_train.network.channels import Topology
from sbs_train.network.keep import kept_layers
from sbs_train.network.structure import structure_of
from sbs_train.quant.adds import PARAMETERS, Addition, ResidualAdds
from sbs_train.quant.clamping import clamp_clips
from sbs_train.quant.layers import STATE, SBSLayer
from sbs_train.quant.quantizer import EAGER, compiled_kernels
from sbs_train.quant.swapping import swap_layers


@dataclass(kw_only=True)
class Network:
    """A model whose layers share bits, and its structure."""

    model: nn.Module
    layers: dict[str, SBSLayer]
    """Layers that can be quantized, in the order in which they run."""
    adds: ResidualAdds
    topology: Topology
    batchnorms: dict[str, str]
    """The BatchNorm that the export folds into a layer, by the layer's name."""
    spec: ModelSpec
    example: Example
    """Two samples or more, on the CPU."""
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    additions: list[Addition]
    """All additions of two feature maps, those that stay in float too."""
    kept: dict[str, int]
    """Bits of the layers that the user fixed."""
    config: TrainConfig

    @property
    def quantized(self) -> bool:
        return self.config.mode != "prune"

    def candidates(self) -> tuple[list[int], list[int]]:
        """Candidate bits of weights and activations besides float; [32] where nothing is quantized.

        Fewer bits than the finest save no milliseconds, so they are candidates only where BOPs are limited.
        """
        search: SearchConfig = self.config.search
        if not self.quantized:
            return [FLOAT_BITS], [FLOAT_BITS]
        first = -1 if self.config.cost is not None and self.config.max_bops is None else 0
        return list(search.bits_weights[first:]), list(search.bits_activations[first:])

    @property
    def bops_fp32(self) -> float:
        """BOPs of the dense network in FP32."""
        return float(cost.bops(self.topology.total_macs, FLOAT_BITS, FLOAT_BITS))

    @property
    def float_bops(self) -> float:
        """BOPs of the layers that stay in float."""
        macs = sum(shape.macs for name, shape in self.topology.layers.items() if name not in self.layers)
        return float(cost.bops(macs, FLOAT_BITS, FLOAT_BITS))

    def device_cost(self) -> Latency | None:
        """Cost of this network on the device of `--cost`; None where the search's cost is in BOPs.

        Raises:
            SbsError: device.json is missing or damaged, or holds no such network.
        """
        if self.config.cost is None:
            return None
        for name, layer in self.topology.layers.items():
            if layer.calls > 1:
                raise SbsError(
                    f"--cost: {name} runs {layer.calls} times a pass, and device models know layers that run once; "
                    f"give a target in BOPs, such as 30x without --cost"
                )
        device = load_device(self.config.cost)
        sizes = {group.id: group.size for group in self.topology.groups}
        layers = {n: (sizes[shape.group_in], sizes[shape.group_out]) for n, shape in self.topology.layers.items()}
        return device_cost(device, device.network_of(layers, self.inputs[0].sample), self.layers)

    def float_state(self) -> dict[str, Tensor]:
        """The state of the float model inside: no clip values, no metrics."""
        own = set(PARAMETERS)
        for name, module in self.model.named_modules(remove_duplicate=False):
            if isinstance(module, SBSLayer):
                own |= {f"{name}.{state}" for state in STATE}
        return {name: value for name, value in self.model.state_dict().items() if name not in own}

    def clip_values(self) -> list[nn.Parameter]:
        """Every learned clip value."""
        layers = [clip for layer in self.layers.values() for clip in (layer.clip_w, layer.clip_a)]
        return list(dict.fromkeys([*layers, self.adds.clip_lhs, self.adds.clip_rhs]))

    def clamp_clips(self) -> None:
        """Keep learned clip values positive; call after every optimizer step."""
        clamp_clips(list(self.layers.values()), self.adds)

    def set_grids(self, signed: dict[str, bool], signed_adds: list[tuple[bool, bool]] | None = None) -> None:
        """Turn quantization on; `signed` says which inputs, and operands of additions, take negative values."""
        if signed_adds:
            self.adds.enable(signed_adds, (self.add_grid(False), self.add_grid(True)))
        for name, layer in self.layers.items():
            layer.set_grids(*self.grids(name, signed[name]))
        for name, bits in self.kept.items():
            self.layers[name].set_bits(bits, bits)

    def check_kept(self) -> None:
        """SbsError for a layer that shall keep bits which it has no grid for."""
        for name, bits in self.kept.items():
            known = [] if not self.quantized else sorted({INT8_BITS, *set.intersection(*map(set, self.candidates()))})
            if bits not in known:
                choices = ", ".join(["float", *map(str, known)])
                raise SbsError(f"keep: {name} cannot keep {bits} bits; choose one of {choices}")

    def grids(self, name: str, signed: bool) -> tuple[Grid, Grid]:
        """Grids of a layer's weights and of its input."""
        fixed, family = name in self.topology.fixed or self.kept.get(name) == INT8_BITS, self.config.grid
        bits_w, bits_a = (grid_bits(bits, fixed=fixed) for bits in self.candidates())
        return make_grid("weight", bits_w, family), make_grid(activation_role(signed), bits_a, family)

    def add_grid(self, signed: bool) -> Grid:
        """The grid of an addition's operands; only its 8-bit level is used."""
        bits = grid_bits(self.candidates()[1], fixed=True)
        return make_grid(activation_role(signed), bits, self.config.grid)


def build_network(
    config: TrainConfig,
    model: nn.Module,
    example: Example,
    spec: ModelSpec,
    keep: Mapping[str, int | Literal["float"]] | None = None,
) -> Network:
    """The network of `config` around a float model, whose layers are swapped in place, quantization off.

    Args:
        example: two samples or more, on the model's device.
        spec: what the plan calls the model.
        keep: layers, by fnmatch patterns of their names, that stay in float or at fixed bits, and whole.

    Raises:
        SbsError: the model cannot run the example, or has no layer to compress; or the bitwidths cannot be shared.
    """
    if example.samples < 2:
        raise SbsError("give example inputs of two samples or more: one does not show which axis the samples lie on")
    # Only an 8-bit quantizer can serve an addition.
    reach = config.search.reach(with_cost=config.cost is not None)
    kept = kept_layers(model, keep or {})
    structure = structure_of(model, example, reach, pair=INT8_BITS in config.search.bits_activations, kept=kept)
    topology = structure.topology
    inputs, outputs = specs_of(model, example)
    swapped = swap_layers(model, set(topology.quantizable))
    layers = {name: swapped[name] for name in topology.quantizable}
    if not layers:
        raise SbsError(f"no layer of {spec.name} can be quantized or pruned; `sbs-train profile` says why")
    residual = config.mode != "prune" and config.search.quantize_residual
    adds = ResidualAdds(structure.quantized_additions if residual else [], layers)
    adds.install(model)
    grid = config.grid
    default: Literal["scale", "mean-std"] = "mean-std" if grid == "paper" else "scale"
    first_reader: dict[str, SBSLayer] = {}
    for name, layer in layers.items():
        shape = topology.layers[name]
        # Readers of one tensor share a clip value: at equal bits they share a quantizer in the engine.
        layer.clip_a = first_reader.setdefault(shape.same_input, layer).clip_a
        layer.macs, layer.group_in, layer.group_out = shape.macs, shape.group_in, shape.group_out
        layer.per_sample = shape.per_sample
        layer.standardise = config.search.standardise or default
        layer.kernels = compiled_kernels() if config.compile else EAGER
    network = Network(
        model=model,
        layers=layers,
        adds=adds,
        topology=topology,
        batchnorms=structure.batchnorms,
        spec=spec,
        example=example.to(torch.device("cpu")),
        inputs=inputs,
        outputs=outputs,
        additions=structure.additions,
        kept={name: bits for name, bits in kept.items() if name in layers},
        config=config,
    )
    network.check_kept()
    if network.quantized:
        bits_w, bits_a = (grid_bits(bits) for bits in network.candidates())
        make_grid("weight", bits_w, grid)
        make_grid("unsigned", bits_a, grid)
        make_grid("signed", bits_a, grid)
    return network


def fastest_layout(network: Network, device: torch.device) -> torch.memory_format:
    """Channels last, where that is safe.

    On CPUs without AVX-512, torch 2.14 corrupts memory in the backward pass of channels-last convolutions with few
    output channels, or with one pixel, a stride and few input channels (docs/LOG.md).
    """
    convolutions = [m for m in network.model.modules() if isinstance(m, nn.Conv2d)]
    transposed = any(isinstance(m, nn.ConvTranspose2d) for m in network.model.modules())
    # A transposed convolution runs the backward pass of a convolution.
    safe = device.type != "cpu" or not (transposed or any(map(_corrupts_memory, convolutions)))
    return torch.channels_last if safe else torch.contiguous_format


def _corrupts_memory(layer: nn.Conv2d) -> bool:
    skips = layer.kernel_size == (1, 1) and layer.stride != (1, 1)
    return layer.out_channels % 8 != 0 or (skips and layer.in_channels // layer.groups < 8)
