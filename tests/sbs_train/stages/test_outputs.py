"""Ranges of outputs, against what BatchNorm really writes."""

import numpy as np
import pytest
import torch
from torch import nn

from sbs_deploy.export.slim import slim_network
from sbs_train.contract.config import CalibrateConfig
from sbs_train.contract.errors import SbsError
from sbs_train.example import Example
from sbs_train.network.network import Network
from sbs_train.quant.interception import Place, intercept_additions
from sbs_train.stages.outputs import with_ranges
from sbs_train.stages.plans import apply_plan, plan_of_network
from tests.sbs_deploy.export.quantized import run_quantized
from tests.sbs_train.small import image_batches, small_network


class NormAndRelu(nn.BatchNorm2d):
    """As timm's: a BatchNorm that applies the activation too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).relu_()


def batches(network: Network) -> list[Example]:
    return [Example.of(x) for x, _ in image_batches(network, 3)]


def normalised() -> Network:
    network = small_network()
    torch.manual_seed(0)
    for module in network.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.weight.data, module.bias.data):
                assert tensor is not None
                tensor.normal_()
    return network


@torch.no_grad()
def test_ranges_are_those_behind_batchnorm_over_kept_channels() -> None:
    network = normalised()
    kept = {group.id: list(range(0, group.size, 2)) for group in network.topology.groups if group.prunable}
    plan = plan_of_network(network, kept)
    apply_plan(network, plan)
    seen: dict[str, list[np.ndarray]] = {}
    for row in plan.layers:
        module = network.model.get_submodule(network.batchnorms.get(row.name, row.name))
        channels = plan.group(row.group_out).kept
        module.register_forward_hook(
            lambda m, x, y, n=row.name, c=channels: seen.setdefault(n, []).append(y[:, c].clone().numpy())
        )
    found = with_ranges(network, plan, batches(network), CalibrateConfig(method="min-max")).ranges
    assert [one.name for one in found] == [row.name for row in plan.layers if row.quantized]
    for one in found:
        values = np.concatenate(seen[one.name])
        assert one.low == pytest.approx(min(values.min(), 0), rel=1e-4, abs=1e-5)
        assert one.high == pytest.approx(max(values.max(), 0), rel=1e-4, abs=1e-5)


@torch.no_grad()
def test_ranges_of_sums_are_those_of_what_an_engine_adds() -> None:
    network = normalised()
    kept = {group.id: list(range(0, group.size, 2)) for group in network.topology.groups if group.prunable}
    apply_plan(network, plan_of_network(network, kept))
    plan = with_ranges(network, plan_of_network(network, kept), batches(network), CalibrateConfig(method="min-max"))
    assert network.adds.enabled
    slim = slim_network(network, plan)
    seen: dict[str, list[torch.Tensor]] = {}

    def see(place: Place, lhs: torch.Tensor, rhs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.setdefault(place.name, []).append(lhs + rhs)
        return lhs, rhs

    with intercept_additions(slim.model, see, slim.places):
        for x in batches(network):
            run_quantized(slim, x.tensors[0])
    assert list(slim.codes.sums) == list(seen) and len(seen) == len(plan.adds) > 0
    for add, (name, parts) in zip(plan.adds, seen.items(), strict=True):
        values, step = torch.cat(parts), max(one.step for one in slim.codes.adds[name])
        assert add.low == pytest.approx(min(float(values.min()), 0), abs=1.01 * step)
        assert add.high == pytest.approx(max(float(values.max()), 0), abs=1.01 * step)


@torch.no_grad()
def test_an_activation_inside_batchnorm_does_not_count() -> None:
    network = normalised()
    config = CalibrateConfig(method="min-max")
    before = with_ranges(network, plan_of_network(network), batches(network), config)
    norm = network.model.get_submodule(network.batchnorms["layer1.0.conv1"])
    norm.__class__ = NormAndRelu
    assert with_ranges(network, plan_of_network(network), batches(network), config) == before


@torch.no_grad()
def test_what_is_always_zero_or_no_number() -> None:
    network = normalised()
    layer = network.layers["layer1.0.conv1"]
    norm = network.model.get_submodule(network.batchnorms["layer1.0.conv1"])
    for parameter in norm.parameters():
        parameter.zero_()
    plan = with_ranges(network, plan_of_network(network), batches(network), CalibrateConfig())
    found = {one.name: one for one in plan.ranges}
    assert (found["layer1.0.conv1"].low, found["layer1.0.conv1"].high) == (0, 1)
    layer.weight.fill_(torch.inf)
    with pytest.raises(SbsError, match=r"layer1\.0\.conv1"):
        with_ranges(network, plan_of_network(small_network()), batches(network), CalibrateConfig())
