"""Between networks and plans: build the quantizable network, read a plan off it, put a plan onto it, restore a run."""

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
from sbs_train.contract.latency import DeviceCost, device_cost
from sbs_train.contract.plan import (
    FLOAT_BITS,
    AddPlan,
    ChannelGroup,
    InputSpec,
    LayerPlan,
    ModelSpec,
    Plan,
    grid_bits,
    make_plan,
)
from sbs_train.inputs.channels import Topology
from sbs_train.inputs.models import build_model
from sbs_train.quant.adds import PARAMETERS, ResidualAdds
from sbs_train.quant.layers import STATE, SBSLayer, layer_kind, swap_layers
from sbs_train.quant.quantizer import EAGER, compiled_kernels
from sbs_train.stages.structure import structure_of


@dataclass(kw_only=True)
class Network:
    """A model whose layers share bits, and what is known of its structure."""

    model: nn.Module
    layers: dict[str, SBSLayer]
    """Those that can be quantized, in the order in which they run."""
    adds: ResidualAdds
    topology: Topology
    batchnorms: dict[str, str]
    """The BatchNorm that goes into a layer when the network is exported, by the layer's name."""
    spec: ModelSpec
    input: InputSpec
    config: TrainConfig

    @property
    def quantized(self) -> bool:
        return self.config.mode != "prune"

    def candidates(self) -> tuple[list[int], list[int]]:
        """Candidate bits of weights and activations; [32] where nothing is quantized."""
        search: SearchConfig = self.config.search
        if not self.quantized:
            return [FLOAT_BITS], [FLOAT_BITS]
        return list(search.bits_weights), list(search.bits_activations)

    @property
    def bops_fp32(self) -> float:
        """BOPs of the dense network in FP32."""
        return float(cost.bops(self.topology.total_macs, FLOAT_BITS, FLOAT_BITS))

    @property
    def float_bops(self) -> float:
        """BOPs of the layers that stay in float."""
        macs = sum(shape.macs for name, shape in self.topology.layers.items() if name not in self.layers)
        return float(cost.bops(macs, FLOAT_BITS, FLOAT_BITS))

    def device_cost(self) -> DeviceCost | None:
        """Cost of this network on the device of `--cost`; None where the search's cost is in BOPs.

        Raises:
            SbsError: device.json is missing or damaged, or holds no such network.
        """
        if self.config.cost is None:
            return None
        device = load_device(self.config.cost)
        sizes = {group.id: group.size for group in self.topology.groups}
        layers = {n: (sizes[shape.group_in], sizes[shape.group_out]) for n, shape in self.topology.layers.items()}
        input = (self.input.channels, self.input.height, self.input.width)
        return device_cost(device, device.network_of(layers, input), self.layers)

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
        for layer in self.layers.values():
            layer.clamp_clips()
        self.adds.clamp_clips()

    def set_grids(self, signed: dict[str, bool], signed_adds: list[tuple[bool, bool]] | None = None) -> None:
        """Turn quantization on; `signed` says which inputs, and operands of additions, take negative values."""
        if signed_adds:
            self.adds.enable(signed_adds, (self.add_grid(False), self.add_grid(True)))
        for name, layer in self.layers.items():
            layer.set_grids(*self.grids(name, signed[name]))

    def grids(self, name: str, signed: bool) -> tuple[Grid, Grid]:
        """The grids of a layer's weights and of its input."""
        fixed, family = name in self.topology.fixed, self.config.grid
        bits_w, bits_a = (grid_bits(bits, fixed=fixed) for bits in self.candidates())
        return make_grid("weight", bits_w, family), make_grid(activation_role(signed), bits_a, family)

    def add_grid(self, signed: bool) -> Grid:
        """The grid of an addition's operands, which are on its 8-bit level."""
        bits = grid_bits(self.candidates()[1], fixed=True)
        return make_grid(activation_role(signed), bits, self.config.grid)


def build_network(config: TrainConfig, spec: ModelSpec, input: InputSpec) -> Network:
    """The float network of `config`, its layers swapped, quantization off.

    Raises:
        SbsError: unknown model, or bitwidths that cannot be shared.
    """
    model = build_model(spec, input.channels, config.seed, size=(input.height, input.width))
    # Only an 8-bit quantizer can serve an addition.
    structure = structure_of(model, input, config.search.prune, pair=INT8_BITS in config.search.bits_activations)
    topology = structure.topology
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
        # One tensor, one scale: at equal bits its readers share a quantizer in the engine.
        layer.clip_a = first_reader.setdefault(shape.same_input, layer).clip_a
        layer.macs, layer.group_in, layer.group_out = shape.macs, shape.group_in, shape.group_out
        layer.standardise = config.search.standardise or default
        layer.kernels = compiled_kernels() if config.compile else EAGER
    network = Network(
        model=model,
        layers=layers,
        adds=adds,
        topology=topology,
        batchnorms=structure.batchnorms,
        spec=spec,
        input=input,
        config=config,
    )
    if network.quantized:
        bits_w, bits_a = (grid_bits(bits) for bits in network.candidates())
        make_grid("weight", bits_w, grid)
        make_grid("unsigned", bits_a, grid)
        make_grid("signed", bits_a, grid)
    return network


def fastest_layout(network: Network, device: torch.device) -> torch.memory_format:
    """Channels last, except where it is not safe.

    On CPUs without AVX-512, torch 2.14 corrupts memory in the backward pass of some channels-last convolutions: those
    with few output channels, and those of one pixel with a stride and few input channels (docs/LOG.md).
    """
    convolutions = [m for m in network.model.modules() if isinstance(m, nn.Conv2d)]
    safe = device.type != "cpu" or not any(map(_corrupts_memory, convolutions))
    return torch.channels_last if safe else torch.contiguous_format


def _corrupts_memory(layer: nn.Conv2d) -> bool:
    skips = layer.kernel_size == (1, 1) and layer.stride != (1, 1)
    return layer.out_channels % 8 != 0 or (skips and layer.in_channels // layer.groups < 8)


def plan_of_network(network: Network, kept: dict[str, list[int]] | None = None) -> Plan:
    """The plan of a network whose bits are frozen; `kept` names the indices that remain of pruned groups."""
    kept = kept or {}
    groups = [
        ChannelGroup(**{**group.model_dump(), "kept": kept.get(group.id, group.kept)})
        for group in network.topology.groups
    ]
    counts = {group.id: len(group.kept) for group in groups}
    layers = []
    for name, shape in network.topology.layers.items():
        layer = network.layers.get(name)
        quantized = layer is not None and layer.gates_w is not None
        layers.append(
            LayerPlan(
                name=name,
                kind=layer_kind(network.model.get_submodule(name)),
                bits_w=layer.bits_w if layer is not None else FLOAT_BITS,
                bits_a=layer.bits_a if layer is not None else FLOAT_BITS,
                clip_w=float(layer.absolute_clip_w().detach()) if layer is not None and quantized else None,
                clip_a=float(layer.absolute_clip_a().detach()) if layer is not None and quantized else None,
                signed_a=layer is not None and layer.grid_a is not None and layer.grid_a.role == "signed",
                macs=shape.macs,
                weights=shape.weights,
                kept_in=counts[shape.group_in],
                kept_out=counts[shape.group_out],
                group_in=shape.group_in,
                group_out=shape.group_out,
            )
        )
    bits_w, bits_a = network.candidates()
    return make_plan(
        model=network.spec,
        input=network.input,
        grid=network.config.grid,
        bits_weights=bits_w,
        bits_activations=bits_a,
        standardise=next(iter(network.layers.values())).standardise,
        layers=layers,
        groups=groups,
        adds=_plan_of_adds(network.adds),
    )


@torch.no_grad()
def _plan_of_adds(adds: ResidualAdds) -> list[AddPlan]:
    if not adds.enabled:
        return []
    clips = [(float(adds.clip(index, 0)), float(adds.clip(index, 1))) for index in range(adds.count)]
    return [
        AddPlan(clip_lhs=clip[0], clip_rhs=clip[1], signed_lhs=signed[0], signed_rhs=signed[1])
        for clip, signed in zip(clips, adds.signed, strict=True)
    ]


def apply_plan(network: Network, plan: Plan) -> None:
    """Freeze the network's bits and masks to the plan's. Clip values stay the network's own: they go on learning.

    Raises:
        SbsError: the plan is of another network.
    """
    if [layer.name for layer in plan.layers] != list(network.topology.layers) or len(plan.adds) not in (
        0,
        network.adds.count,
    ):
        raise SbsError("the plan names other layers than the model has; it belongs to another model")
    for row in plan.layers:
        weights = network.topology.layers[row.name].weights
        if row.weights != weights:
            raise SbsError(f"the plan's {row.name} has {row.weights} weights, the model's {weights}")
        layer = network.layers.get(row.name)
        if layer is None:
            if row.quantized:  # by code that has changed since, or that answers differently here
                raise SbsError(f"the plan quantizes {row.name}, which stays in float here; is it the model's own code?")
            continue
        if row.quantized:
            layer.set_bits(row.bits_w, row.bits_a)
        layer.mask_in = None
        group = plan.group(row.group_in)
        if len(group.kept) < group.size:
            layer.mask_in = mask_of(group).to(layer.weight.device)
    network.adds.release()


def apply_clips(network: Network, plan: Plan) -> None:
    """Replace the learned clip values of a network that `apply_plan` froze by those of the plan, for good."""
    for row in plan.layers:
        if row.clip_w is not None and row.clip_a is not None and row.name in network.layers:
            network.layers[row.name].fix_clips(row.clip_w, row.clip_a)
    network.adds.set_clips([(add.clip_lhs, add.clip_rhs) for add in plan.adds])


def mask_of(group: ChannelGroup) -> Tensor:
    """`mask_C`: 1 for a kept channel, else 0."""
    mask_C = torch.zeros(group.size)
    mask_C[group.kept] = 1
    return mask_C
