"""Read a plan off a frozen network, and apply a plan to a network."""

import torch
from torch import Tensor

from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import (
    FLOAT_BITS,
    AddPlan,
    ChannelGroup,
    LayerPlan,
    Plan,
    make_plan,
)
from sbs_train.network.network import Network
from sbs_train.quant.adds import ResidualAdds
from sbs_train.quant.layers import layer_kind


@torch.no_grad()
def plan_of_network(network: Network, kept: dict[str, list[int]] | None = None) -> Plan:
    """The plan of a network whose bits are frozen; `kept` has the indices of kept channels of pruned groups.

    Raises:
        SbsError: a clip value is not finite.
    """
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
                clip_w=_finite(layer.absolute_clip_w(), name) if layer is not None and quantized else None,
                clip_a=_finite(layer.absolute_clip_a(), name) if layer is not None and quantized else None,
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
        inputs=network.inputs,
        outputs=network.outputs,
        grid=network.config.grid,
        bits_weights=bits_w,
        bits_activations=bits_a,
        standardise=next(iter(network.layers.values())).standardise,
        layers=layers,
        groups=groups,
        adds=_plan_of_adds(network.adds),
    )


def _finite(clip: Tensor, name: str) -> float:
    if not clip.isfinite():
        raise SbsError(
            f"the weights or the clip values of {name} are not finite, so training diverged; lower the learning rate"
        )
    return float(clip)


@torch.no_grad()
def _plan_of_adds(adds: ResidualAdds) -> list[AddPlan]:
    if not adds.enabled:
        return []
    clips = [
        (_finite(adds.clip(index, 0), f"addition {index}"), _finite(adds.clip(index, 1), f"addition {index}"))
        for index in range(adds.count)
    ]
    return [
        AddPlan(clip_lhs=clip[0], clip_rhs=clip[1], signed_lhs=signed[0], signed_rhs=signed[1])
        for clip, signed in zip(clips, adds.signed, strict=True)
    ]


def apply_plan(network: Network, plan: Plan) -> None:
    """Freeze the network's bits and masks to the plan's. Clip values stay the network's own and learnable.

    Raises:
        SbsError: the plan belongs to another network.
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
            if row.quantized:  # the network's code changed, or decides differently here
                raise SbsError(f"the plan quantizes {row.name}, which stays in float here; is it the model's own code?")
            continue
        if layer.grid_w is not None:
            layer.set_bits(row.bits_w, row.bits_a)
        layer.mask_in = None
        group = plan.group(row.group_in)
        if len(group.kept) < group.size:
            layer.mask_in = mask_of(group).to(layer.weight.device)
    network.adds.release()


def apply_clips(network: Network, plan: Plan) -> None:
    """Replace the learned clip values of a network, frozen by `apply_plan`, by the plan's, for good."""
    for row in plan.layers:
        if row.clip_w is not None and row.clip_a is not None and row.name in network.layers:
            network.layers[row.name].fix_clips(row.clip_w, row.clip_a)
    network.adds.set_clips([(add.clip_lhs, add.clip_rhs) for add in plan.adds])


def mask_of(group: ChannelGroup) -> Tensor:
    """`mask_C`: 1 for a kept channel, else 0."""
    mask_C = torch.zeros(group.size)
    mask_C[group.kept] = 1
    return mask_C
