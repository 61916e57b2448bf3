"""The slim network computes what the masked one does, and its codes are the masked one's codes."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from sbs_deploy.export.slim import exact_dtype, slim_network
from sbs_train.contract.config import TrainConfig
from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import ModelSpec, Plan
from sbs_train.example import Example
from sbs_train.inputs.models import CifarResNet, build_model
from sbs_train.network.channels import topology_of
from sbs_train.network.network import Network
from sbs_train.quant.folding import paired_batchnorms
from sbs_train.stages.integers import snap_biases
from tests.sbs_deploy.export.networks import SMALL_EXAMPLE, SMALL_INPUT, MobileNet, random_network
from tests.sbs_deploy.export.quantized import run_quantized

CONFIG = TrainConfig(model="resnet20", width=4)
SLOW_TO_DRAW = settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])


def resnet(blocks: int = 1) -> nn.Module:
    return CifarResNet(blocks, 4, 3, 5)


def mobilenet() -> nn.Module:
    return MobileNet(5)


def mobilenetv2() -> nn.Module:
    return build_model(ModelSpec(name="mobilenetv2", arguments={"width": 8, "num_classes": 5}), 3)


def images(seed: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert float((found - expected).abs().max() / expected.abs().max().clamp_min(1)) < 1e-5


@SLOW_TO_DRAW
@given(seed=st.integers(0, 2**31), build=st.sampled_from([resnet, mobilenet]))
def test_slim_equals_masked_quantized(seed: int, build) -> None:
    # In double, where no activation sits so close to a rounding boundary that the order of a sum decides.
    network, plan = random_network(build(), seed, config=CONFIG, input=SMALL_INPUT)
    network.model.double()
    slim = slim_network(network, plan)
    x = images(seed, torch.float64)
    with torch.no_grad():
        assert_close(run_quantized(slim, x), network.model(x))


@pytest.mark.parametrize("bits", [(2, 4, 8), (8,)])
def test_slim_mobilenetv2_equals_masked_quantized(bits: tuple[int, ...]) -> None:
    network, plan = random_network(mobilenetv2(), 11, bits=bits, config=CONFIG, input=SMALL_INPUT)
    network.model.double()
    slim = slim_network(network, plan)
    x = images(11, torch.float64)
    with torch.no_grad():
        assert_close(run_quantized(slim, x), network.model(x))
    assert sum(row.kept_out < plan.group(row.group_out).size for row in plan.layers if row.kind == "depthwise") > 10
    # What is left costs what the plan says, multiplications counted on the slim network itself.
    layers = topology_of(slim.model.float(), SMALL_EXAMPLE).layers
    assert sum(layers[row.name].macs * row.bits_w * row.bits_a for row in plan.layers) == pytest.approx(plan.cost.bops)


@pytest.mark.parametrize("build", [mobilenet, mobilenetv2])
def test_nothing_of_a_pruned_channel_matters(build) -> None:
    """Expansion, depthwise layer and both BatchNorms may hold anything there."""
    network, plan = random_network(build(), 6, config=CONFIG, input=SMALL_INPUT)
    x = images(6, torch.float32)
    norms = norms_by_name(network, plan)
    with torch.no_grad():
        expected = network.model(x)
        for row in plan.layers:
            pruned = sorted(set(range(plan.group(row.group_out).size)) - set(plan.group(row.group_out).kept))
            network.layers[row.name].weight[pruned] *= -3
            if row.name in norms:
                norm = network.model.get_submodule(norms[row.name])
                norm.weight[pruned] = 7
                norm.bias[pruned] = 5
        assert torch.equal(network.model(x), expected)


@SLOW_TO_DRAW
@given(seed=st.integers(0, 2**31), build=st.sampled_from([resnet, mobilenet]))
def test_slim_equals_masked_without_activation_quantization(seed: int, build) -> None:
    network, plan = random_network(build(), seed, config=CONFIG, input=SMALL_INPUT)
    slim = slim_network(network, plan)
    network.adds.enabled = False
    for layer in network.layers.values():
        layer.gates_a = None
    x = images(seed, torch.float32)
    with torch.no_grad():
        assert_close(slim.model(x), network.model(x))


@SLOW_TO_DRAW
@given(seed=st.integers(0, 2**31), build=st.sampled_from([resnet, mobilenet]))
def test_pruned_alone_stays_in_float(seed: int, build) -> None:
    config = TrainConfig(model="resnet20", width=4, mode="prune")
    network, plan = random_network(build(), seed, config=config, input=SMALL_INPUT)
    slim = slim_network(network, plan)
    assert slim.codes.layers == {}
    x = images(seed, torch.float32)
    with torch.no_grad():
        assert_close(slim.model(x), network.model(x))


@pytest.mark.parametrize("build", [resnet, mobilenet, mobilenetv2])
def test_codes_against_numpy(build) -> None:
    network, plan = random_network(build(), 3, config=CONFIG, input=SMALL_INPUT)
    slim = slim_network(network, plan)
    norms = norms_by_name(network, plan)
    negative = 0
    for row in plan.layers:
        layer, quantized = network.layers[row.name], slim.codes.layers[row.name]
        kept_out = plan.group(row.group_out).kept
        kept_in = [0] if row.kind == "depthwise" else plan.group(row.group_in).kept
        codes = plan.level_w(row).quantize(layer.weight.detach().numpy(), row.clip_w)[kept_out][:, kept_in]
        norm = norms.get(row.name)
        gamma_O, sigma_O = np.ones(len(kept_out)), np.ones(len(kept_out))
        if norm is not None:
            module = network.model.get_submodule(norm)
            gamma_O = module.weight.detach().numpy()[kept_out]
            sigma_O = np.sqrt(module.running_var.numpy()[kept_out] + module.eps)
        negative += int((gamma_O < 0).sum())
        np.testing.assert_array_equal(quantized.codes, codes * np.sign(gamma_O).reshape(-1, *[1] * (codes.ndim - 1)))
        step = row.clip_w / plan.level_w(row).steps
        np.testing.assert_allclose(quantized.scale_O, np.maximum(step * np.abs(gamma_O) / sigma_O, 1e-8), rtol=1e-6)
        assert quantized.codes.shape[0] == row.kept_out
        assert quantized.input.step == pytest.approx(row.clip_a / plan.level_a(row).steps)
    assert negative > 0


def norms_by_name(network: Network, plan: Plan) -> dict[str, str]:
    """The BatchNorm of each layer by the networks' own naming, independent of how slim.py finds it."""
    modules = dict(network.model.named_modules())
    norms = {}
    for row in plan.layers:
        parent, _, child = row.name.rpartition(".")
        dot = f"{parent}." if parent else ""
        norm = (
            f"{dot}{int(child) + 1}" if child.isdigit() else f"{dot}{child.replace('conv', 'bn').replace('fc', 'bn')}"
        )
        if isinstance(modules.get(norm), nn.BatchNorm1d | nn.BatchNorm2d):
            norms[row.name] = norm
    return norms


@pytest.mark.parametrize("build", [resnet, mobilenet])
def test_snapped_biases_are_whole_steps_of_the_accumulator(build) -> None:
    network, plan = random_network(build(), 4, config=CONFIG, input=SMALL_INPUT)
    before = slim_network(network, plan)
    snap_biases(network, plan)
    after = slim_network(network, plan)
    for name, layer in after.codes.layers.items():
        step_O = layer.scale_O.astype(np.float64) * layer.input.step
        old, new = (s.model.get_parameter(f"{name}.bias").detach().double().numpy() for s in (before, after))
        assert np.all(np.abs(new - old) <= 0.51 * step_O + 1e-6)
        alive = layer.scale_O > 1e-6
        steps_O = (new / step_O)[alive]
        np.testing.assert_allclose(steps_O, np.rint(steps_O), atol=1e-2)


def test_the_network_is_left_as_it_was() -> None:
    network, plan = random_network(mobilenet(), 5, config=CONFIG, input=SMALL_INPUT)
    before = copy.deepcopy(network.model.state_dict())
    slim_network(network, plan)
    assert all(torch.equal(before[name], value) for name, value in network.model.state_dict().items())


def test_batchnorm_elsewhere_is_not_folded() -> None:
    """BatchNorm behind an activation, even one that works in place, or that another layer shares, stays."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(3, 3, 1) for _ in range(3))
            self.relu = nn.ReLU(inplace=True)
            self.after_relu, self.shared, self.plain = (nn.BatchNorm2d(3) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.after_relu(self.relu(self.a(x)))
            return self.plain(self.c(self.shared(self.b(y)) + self.shared(x)))

    assert paired_batchnorms(Odd().eval(), Example.of(torch.zeros(1, 3, 4, 4))) == {"c": "plain"}


def test_a_batchnorm_is_not_folded_where_the_layers_own_result_is_read_as_well() -> None:
    """As in pre-activation ResNets and in DenseNets."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn, self.fc = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            return self.fc((self.bn(y) + y).mean((2, 3)))

    network, plan = random_network(Both(), 1, config=CONFIG, input=SMALL_INPUT)
    assert network.batchnorms == {}
    slim = slim_network(network, plan)
    x = images(0, torch.float32)
    with torch.no_grad():
        assert_close(run_quantized(slim, x), network.model(x))


def test_paper_grid_of_8_bits_is_refused() -> None:
    config = TrainConfig(model="resnet20", width=4, grid="paper")
    network, plan = random_network(resnet(), 1, bits=(8,), config=config, input=SMALL_INPUT)
    with pytest.raises(SbsError, match="--grid int8"):
        slim_network(network, plan)


class Float32(nn.Module):
    """A network with a type written into it, as in norms that insist on float32."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.fc(self.conv2(x).float().mean((2, 3)))


def test_a_network_that_insists_on_float32_is_folded_too() -> None:
    network, plan = random_network(Float32(), seed=0, config=CONFIG, input=SMALL_INPUT)
    assert exact_dtype(network.model, network.example) == torch.float32
    network.model.eval()
    slim = slim_network(network, plan)
    x = images(0, torch.float32)
    with torch.no_grad():
        assert_close(run_quantized(slim, x), network.model(x))
    assert exact_dtype(resnet(), network.example) == torch.float64
