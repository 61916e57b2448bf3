"""Weights from files and factories: what is no weight of this model is named before anything trains."""

import json
import struct
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import nn

from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import ModelSpec
from sbs_train.inputs.models import build_model
from sbs_train.inputs.tensors import check_model
from sbs_train.stages.weights import load_weights

NAN, INFINITE = float("nan"), float("inf")


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))


FLOAT_NAMES = [name for name, value in model().state_dict().items() if value.is_floating_point()]


@given(st.sampled_from(FLOAT_NAMES), st.sampled_from([NAN, INFINITE, -INFINITE]), st.integers(0, 10**6))
def test_a_value_that_is_no_number_is_refused_by_the_tensors_name(tmp_path_factory, name, value, where):
    state = {key: tensor.clone() for key, tensor in model().state_dict().items()}
    state[name].view(-1)[where % state[name].numel()] = value
    path = tmp_path_factory.getbasetemp() / "weights.safetensors"
    save_file(state, path)
    own = model()
    before = {key: tensor.clone() for key, tensor in own.state_dict().items()}
    with pytest.raises(SbsError, match=rf"weights\.safetensors: {name} holds 1 values that are NaN or infinite"):
        load_weights(own, path)
    assert all(torch.equal(tensor, own.state_dict()[key]) for key, tensor in before.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_converted(tmp_path, dtype):
    whole = model().state_dict()
    save_file({k: v.to(dtype) if v.is_floating_point() else v for k, v in whole.items()}, tmp_path / "w.safetensors")
    own = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    load_weights(own, tmp_path / "w.safetensors")
    for name, value in own.state_dict().items():
        assert value.dtype == whole[name].dtype
        torch.testing.assert_close(value, whole[name], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"0.weight": torch.full((4, 3, 3, 3), 1e300, dtype=torch.float64)}, "0.weight holds 108"),
        ({"0.weight": torch.zeros(4, 3, 3, 3, dtype=torch.int8)}, "0.weight is of torch.int8"),
        ({"0.weight": torch.zeros(4, 3, 3, 3, dtype=torch.float8_e4m3fn)}, "0.weight is of torch.float8"),
        ({"0.weight": torch.zeros(4, 3, 3)}, "0.weight has shape"),
        ({"1.num_batches_tracked": torch.tensor(0.5)}, "num_batches_tracked is of torch.float32"),
        ({"1.running_var": torch.tensor([1.0, -1, 1, 1])}, "running_var holds negative variances"),
        ({"0.bias": None}, "lacks 0.bias"),
        ({"new": torch.zeros(1)}, "has the unknown new"),
    ],
)
def test_other_types_shapes_and_names_are_refused(tmp_path, change, words):
    state = {name: value for name, value in {**model().state_dict(), **change}.items() if value is not None}
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(SbsError, match=words):
        load_weights(model(), tmp_path / "w.safetensors")


def header(value, data=b""):
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"123",
        struct.pack("<Q", 2**63),
        struct.pack("<Q", 90_000_000) + b" " * 1000,
        header(b"[]"),
        header(b"{" * 100_000),
        header({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}}, b"1234"),
        header({"a": {"dtype": "F32", "shape": [2**40, 0], "data_offsets": [0, 0]}}),
        header({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}, b"1"),
        header({"a": {"dtype": "X", "shape": [1], "data_offsets": [0, 1]}}, b"1"),
        header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"1234"),
        header({"__metadata__": 3}),
        save({"a": torch.ones(3)})[:-1],
        save({"a": torch.ones(3)}) + b"x",
    ],
)
def test_files_that_are_none_are_refused(tmp_path, content):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(SbsError, match=r"w\.safetensors"):
        load_weights(model(), path)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("nn.init.constant_(net[0].weight, float('nan'))", "0.weight holds 108 values"),
        ("nn.init.constant_(net[0].bias, float('inf'))", "0.bias holds"),
        ("net[1].running_mean.fill_(float('nan'))", "running_mean holds"),
        ("net[1].running_var.fill_(-1)", "negative variances"),
        ("net[0] = nn.LazyConv2d(4, 3)", "0.weight has no values"),
        ("net[0] = nn.Conv2d(3, 4, 3, device='meta')", "0.weight has no values"),
    ],
)
def test_a_factory_that_brings_such_weights_is_refused(tmp_path, line, words):
    path = tmp_path / "mine.py"
    path.write_text(
        "from torch import nn\ndef make():\n"
        f"    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))\n    {line}\n    return net\n"
    )
    with pytest.raises(SbsError, match=words):
        build_model(ModelSpec(name=f"{path}:make", arguments={"width": 1, "num_classes": 2}), 3)


def test_a_mask_may_be_infinite():
    net = model()
    net.register_buffer("mask", torch.full((2, 2), -INFINITE).triu(1))
    check_model(net, "mine")


def with_lock():
    network = model()
    network.lock = threading.Lock()
    return network


def with_a_generator_below():
    network = model()
    network[1].order = (index for index in range(3))
    return network


def with_weights_of_a_graph():
    network = model()
    network[0].scaled = network[0].weight * 2  # as the old weight_norm leaves them
    return network


@pytest.mark.parametrize("network", [with_lock, with_a_generator_below, with_weights_of_a_graph])
def test_a_model_that_cannot_be_copied_is_refused_in_one_line(network):
    check_model(model(), "mine")
    with pytest.raises(SbsError, match="cannot be copied .* outside of the model") as error:
        check_model(network(), "mine")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("part", ["", "0", "1", "2"])
def test_a_model_that_is_not_in_float32_is_refused(part, dtype):
    network = model()
    network.get_submodule(part).to(dtype)
    with pytest.raises(SbsError, match=rf"(weight|bias) is in {dtype}".replace("torch.", "") + r".*model\.float\(\)"):
        check_model(network, "mine")
    check_model(network.float(), "mine")
