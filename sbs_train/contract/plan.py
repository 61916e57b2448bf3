"""THE CONTRACT between training and deployment: plan.json.

A plan says, for every convolution and linear layer, its bitwidths, clip values and groups, and for every group
of channels that must be removed together, which are kept. It owns the scales: nothing downstream estimates a
range again. Everything inconsistent is refused when a plan is made or read, with the field named.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from sbs_train.contract import cost, rundir
from sbs_train.contract.cost import INT8_BITS
from sbs_train.contract.documents import load_versioned
from sbs_train.contract.errors import SbsError
from sbs_train.contract.grid import (
    Family,
    Grid,
    Level,
    Quantizer,
    Role,
    activation_role,
    make_grid,
    range_quantizer,
)
from sbs_train.contract.manifest import command_for, recorded_plan
from sbs_train.contract.plan_v1 import upgraded
from sbs_train.contract.schema import FLOAT_BITS as FLOAT_BITS
from sbs_train.contract.schema import AddPlan as AddPlan
from sbs_train.contract.schema import ChannelGroup as ChannelGroup
from sbs_train.contract.schema import CostSummary as CostSummary
from sbs_train.contract.schema import InputSpec as InputSpec
from sbs_train.contract.schema import LayerPlan as LayerPlan
from sbs_train.contract.schema import ModelSpec as ModelSpec
from sbs_train.contract.schema import OutputRange as OutputRange
from sbs_train.contract.schema import Strict
from sbs_train.contract.schema import TensorSpec as TensorSpec

SCHEMA_VERSION = 2


class Plan(Strict):
    """The plan of a whole network. `make_plan` computes `cost`; `load_plan` checks `cost`."""

    schema_version: Literal[2]
    model: ModelSpec
    inputs: Annotated[list[TensorSpec], Field(min_length=1)]
    """In the order in which the network takes them."""
    outputs: Annotated[list[TensorSpec], Field(min_length=1)]
    """In the order in which the network returns them."""
    grid: Family
    bits_weights: Annotated[list[int], Field(min_length=1)]
    """Candidate weight bits."""
    bits_activations: Annotated[list[int], Field(min_length=1)]
    standardise: Literal["scale", "mean-std"]
    """How weights are standardised before quantization: mean-std also centres them."""
    layers: Annotated[list[LayerPlan], Field(min_length=1)]
    groups: list[ChannelGroup]
    adds: Annotated[list[AddPlan], Field(default_factory=list)]
    """Quantized additions; empty where they stay in float."""
    ranges: Annotated[list[OutputRange], Field(default_factory=list)]
    """Ranges of outputs of quantized layers, in order of `layers`; empty in plans of before the field."""
    cost: CostSummary

    @model_validator(mode="after")
    def _check(self) -> "Plan":
        groups = {group.id: group for group in self.groups}
        names = [layer.name for layer in self.layers]
        if len(groups) != len(self.groups):
            raise ValueError("groups: an id is repeated")
        if len(set(names)) != len(names):
            raise ValueError("layers: a name is repeated")
        _check_candidates("bits_weights", self.bits_weights, ("weight",), self.grid)
        _check_candidates("bits_activations", self.bits_activations, ("unsigned", "signed"), self.grid)
        for layer in self.layers:
            _check_layer(layer, self, groups)
        for group in self.groups:
            for name in (*group.producers, *group.consumers):
                if name not in names:
                    raise ValueError(f"groups: {group.id} names the unknown layer {name}")
        tensors = [tensor.name for tensor in (*self.inputs, *self.outputs)]
        if len(set(tensors)) != len(tensors):
            raise ValueError("inputs and outputs: a name is repeated")
        ranged = [one.name for one in self.ranges]
        if ranged != [layer.name for layer in self.layers if layer.quantized and layer.name in ranged]:
            raise ValueError("ranges must name quantized layers, each once and in their order")
        expected = self._costs()
        for field in ("bops_fp32", "bops", "reduction"):
            if not math.isclose(getattr(self.cost, field), getattr(expected, field), rel_tol=1e-6):
                raise ValueError(f"cost.{field} does not match the layers (expected {getattr(expected, field):g})")
        if self.cost.shares.keys() != expected.shares.keys():
            raise ValueError("cost.shares must name every layer once")
        for name, share in expected.shares.items():
            if not math.isclose(self.cost.shares[name], share, rel_tol=1e-6):
                raise ValueError(f"cost.shares of {name} does not match the layers (expected {share:g})")
        return self

    def group(self, group_id: str) -> ChannelGroup:
        return next(group for group in self.groups if group.id == group_id)

    def layer(self, name: str) -> LayerPlan:
        return next(layer for layer in self.layers if layer.name == name)

    def weight_grid(self, bits: int) -> Grid:
        """Grid of weights of `bits` bits."""
        return make_grid("weight", grid_bits(self.bits_weights, fixed=bits not in self.bits_weights), self.grid)

    def activation_grid(self, signed: bool, bits: int) -> Grid:
        """Grid of inputs of `bits` bits."""
        fixed = bits not in self.bits_activations
        return make_grid(activation_role(signed), grid_bits(self.bits_activations, fixed=fixed), self.grid)

    def level_w(self, layer: LayerPlan) -> Level:
        """The integer codes of a quantized layer's weights."""
        return self.weight_grid(layer.bits_w).level(layer.bits_w)

    def level_a(self, layer: LayerPlan) -> Level:
        """The integer codes of a quantized layer's input."""
        return self.activation_grid(layer.signed_a, layer.bits_a).level(layer.bits_a)

    def quantizer_w(self, layer: LayerPlan) -> Quantizer:
        """How the weights of a quantized layer become integers."""
        assert layer.clip_w is not None
        return self.level_w(layer).quantizer(layer.clip_w)

    def quantizer_a(self, layer: LayerPlan) -> Quantizer:
        """How the input of a quantized layer becomes integers."""
        assert layer.clip_a is not None
        return self.level_a(layer).quantizer(layer.clip_a)

    def quantizers_of(self, add: AddPlan) -> tuple[Quantizer, Quantizer]:
        """How the left and the right operand of an addition become integers, on the 8-bit grid of layer inputs."""
        lhs, rhs = (self.activation_grid(s, INT8_BITS).level(INT8_BITS) for s in (add.signed_lhs, add.signed_rhs))
        return lhs.quantizer(add.clip_lhs), rhs.quantizer(add.clip_rhs)

    def output_quantizers(self) -> dict[str, Quantizer]:
        """How outputs of layers become integers, by the layer's name."""
        return {one.name: range_quantizer(one.low, one.high) for one in self.ranges}

    def sum_quantizer(self, add: AddPlan) -> Quantizer | None:
        """How the sum of an addition becomes integers; None in plans without its range."""
        return None if add.low is None or add.high is None else range_quantizer(add.low, add.high)

    def kept_fraction(self, group_id: str) -> float:
        """Part of a group's channels that the plan keeps."""
        group = self.group(group_id)
        return len(group.kept) / group.size

    def kept_macs(self, layer: LayerPlan, channels: Mapping[str, int] | None = None) -> float:
        """Multiply-accumulates of a layer for one sample after pruning.

        Args:
            channels: number of kept channels by group id; None takes the plan's numbers.
        """
        return self._remaining(layer, layer.macs, channels)

    def kept_weights(self, layer: LayerPlan) -> float:
        """Weights of a layer after pruning."""
        return self._remaining(layer, layer.weights)

    def bops(self, layer: LayerPlan) -> float:
        """Bit-Operations of a layer for one sample, at the plan's bits."""
        return float(cost.bops(self.kept_macs(layer), layer.bits_w, layer.bits_a))

    def slim_bops(self) -> float:
        """Bit-Operations of one sample where the pruned network runs in FP32."""
        return float(sum(cost.bops(self.kept_macs(layer), cost.FP32_BITS, cost.FP32_BITS) for layer in self.layers))

    def deployable_bops(self) -> float:
        """Bit-Operations of one sample as INT8 hardware executes the plan: no convolution computes below 8 bits.

        A layer with a float weight or input runs wholly in float, counted at 32 bits.
        """
        total = 0.0
        for layer in self.layers:
            bits = (layer.bits_w, layer.bits_a) if layer.quantized else (cost.FP32_BITS, cost.FP32_BITS)
            total += cost.bops(self.kept_macs(layer), *map(cost.deployable_bits, bits))
        return total

    def _remaining(self, layer: LayerPlan, dense: int, channels: Mapping[str, int] | None = None) -> float:
        groups = self.group(layer.group_in), self.group(layer.group_out)
        counts = [len(group.kept) if channels is None else channels[group.id] for group in groups]
        fraction_in, fraction_out = (count / group.size for count, group in zip(counts, groups, strict=True))
        return float(
            cost.kept_macs(float(dense), fraction_in, fraction_out, depthwise=float(layer.kind == "depthwise"))
        )

    def _costs(self) -> CostSummary:
        by_layer = {layer.name: self.bops(layer) for layer in self.layers}
        total = sum(by_layer.values())
        dense = sum(cost.bops(float(layer.macs), FLOAT_BITS, FLOAT_BITS) for layer in self.layers)
        shares = {name: value / total for name, value in by_layer.items()}
        return CostSummary(bops_fp32=dense, bops=total, reduction=dense / total, shares=shares)


def grid_bits(candidates: list[int] | tuple[int, ...], *, fixed: bool = False) -> tuple[int, ...]:
    """Bitwidths of a layer's grid: the candidates; if `fixed` (first and last layer) 8 bits, shared where possible."""
    if fixed and INT8_BITS not in candidates:
        return (INT8_BITS,)
    return tuple(bits for bits in candidates if bits != FLOAT_BITS)


def make_plan(
    *,
    model: ModelSpec,
    inputs: list[TensorSpec],
    outputs: list[TensorSpec],
    grid: Family,
    bits_weights: list[int],
    bits_activations: list[int],
    layers: list[LayerPlan],
    groups: list[ChannelGroup],
    standardise: Literal["scale", "mean-std"] = "scale",
    adds: list[AddPlan] | None = None,
) -> Plan:
    """A validated plan, its cost computed."""
    plan = Plan.model_construct(
        schema_version=SCHEMA_VERSION,
        model=model,
        inputs=inputs,
        outputs=outputs,
        grid=grid,
        bits_weights=bits_weights,
        bits_activations=bits_activations,
        standardise=standardise,
        layers=layers,
        groups=groups,
        adds=adds or [],
    )
    return Plan(**dict(plan), cost=plan._costs())


def load_plan(path: Path, sha256: str | None = None) -> Plan:
    """Read and check plan.json; SbsError names the first wrong field, or says that the file changed.

    Args:
        sha256: expected hash of the file; by default the hash in its weights' manifest.
    """
    expected = sha256 or recorded_plan(path)
    remedy = f"make it again with `{command_for(path, 'sbs-train --resume')}`"
    return load_versioned(path, Plan, SCHEMA_VERSION, remedy, sha256=expected, older={1: upgraded})


def save_plan(plan: Plan, path: Path) -> None:
    """Write plan.json atomically."""
    rundir.write_json(path, plan.model_dump())


def _check_candidates(field: str, candidates: list[int], roles: tuple[Role, ...], family: Family) -> None:
    if candidates != sorted(set(candidates)):
        raise ValueError(f"{field} must be ascending and without repeats")
    if candidates != [FLOAT_BITS]:
        try:
            for role in roles:
                make_grid(role, grid_bits(candidates), family)
        except SbsError as error:
            raise ValueError(f"{field}: {error}") from error


def _check_layer(layer: LayerPlan, plan: Plan, groups: dict[str, ChannelGroup]) -> None:
    for field in ("group_in", "group_out"):
        if getattr(layer, field) not in groups:
            raise ValueError(f"layers: {field} of {layer.name} names the unknown group {getattr(layer, field)}")
    for field, count, group in (
        ("kept_in", layer.kept_in, groups[layer.group_in]),
        ("kept_out", layer.kept_out, groups[layer.group_out]),
    ):
        if count != len(group.kept):
            raise ValueError(
                f"layers: {field} of {layer.name} is {count}, but group {group.id} keeps {len(group.kept)}"
            )
    for field, bits, candidates in (
        ("bits_w", layer.bits_w, plan.bits_weights),
        ("bits_a", layer.bits_a, plan.bits_activations),
    ):
        ends = layer is plan.layers[0] or layer is plan.layers[-1]
        if bits not in (*candidates, FLOAT_BITS) and not (ends and bits == INT8_BITS):
            raise ValueError(f"layers: {field} of {layer.name} is {bits}, not among the candidates {candidates}")
    if layer.name not in groups[layer.group_in].consumers:
        raise ValueError(f"layers: group_in of {layer.name} is {layer.group_in}, whose consumers do not name it")
    if layer.name not in groups[layer.group_out].producers:
        raise ValueError(f"layers: group_out of {layer.name} is {layer.group_out}, whose producers do not name it")
