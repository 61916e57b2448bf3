"""Clip values to start from, against NumPy on what the float network really computes."""

import dataclasses

import numpy as np
import pytest
import torch

from calib import ranges
from sbs_train.contract import rundir
from sbs_train.contract.config import CalibrateConfig, TrainConfig
from sbs_train.contract.plan import ModelSpec
from sbs_train.inputs.data import load_dataset
from sbs_train.stages.calibrate import calibrate
from sbs_train.stages.context import open_context
from sbs_train.stages.loop import epoch_seed
from sbs_train.stages.named import named_network
from sbs_train.stages.weights import finish, save_weights
from sbs_train.tasks.classification import Classification


@pytest.fixture(scope="module")
def data():
    return load_dataset("digits")


def calibrated(tmp_path, data, *, bits=(2, 4, 8), mode="joint", **changes):
    config = TrainConfig(width=4, batch_size=16, mode=mode, calibrate=CalibrateConfig(batches=2, **changes))
    search = dataclasses.replace(config.search, bits_weights=bits, bits_activations=bits)
    config = dataclasses.replace(config, search=search)
    spec = ModelSpec(name="resnet20", arguments={"width": 4, "num_classes": 10})
    network = named_network(config, spec, data.input)
    ctx = open_context(
        rundir.create_run(tmp_path / "run"), config, Classification(data=data, batch_size=config.batch_size)
    )
    save_weights(network.float_state(), ctx.run.checkpoints / "fp32.safetensors")
    finish(ctx.run, "fp32", {})
    calibrate(ctx, network)
    ctx.close()
    return network


def inputs_of(data, name):
    """What the layer reads, computed by the float network alone."""
    config = TrainConfig(width=4, batch_size=16)
    spec = ModelSpec(name="resnet20", arguments={"width": 4, "num_classes": 10})
    network = named_network(config, spec, data.input)
    seen = []
    network.layers[name].register_forward_pre_hook(lambda _, x: seen.append(x[0].numpy().copy()))
    with torch.no_grad():
        for x, _ in data.train_batches(16, epoch_seed(0, "calibrate", 0), 2):
            network.model.eval()(x)
    return np.concatenate(seen)


def clips_of(layer):
    """Clip values of all levels: of the weights in deviations, and of the input."""
    weights, inputs = [], []
    for bits in layer.grid_w.bits:
        layer.set_bits(bits, bits)
        weights.append(float(layer.absolute_clip_w().detach() / layer.weight.detach().std()))
        inputs.append(float(layer.absolute_clip_a().detach()))
    return weights, inputs


def error_of(x, level, clip):
    return np.mean((x - level.quantize(x, clip) * clip / level.steps) ** 2)


@pytest.mark.parametrize("name", ["layer1.1.conv2", "layer3.0.conv1"])
def test_every_bitwidth_gets_the_clip_value_with_the_least_squared_error(tmp_path, data, name):
    layer = calibrated(tmp_path, data).layers[name]
    weights, inputs = clips_of(layer)
    assert weights == sorted(weights) and inputs == sorted(inputs)  # fewer bits want a tighter range
    assert weights[0] < 2 and inputs[0] < 0.7 * inputs[2]
    w = (layer.weight / layer.weight.std()).detach().numpy()
    for values, clips, grid in ((w, weights, layer.grid_w), (inputs_of(data, name), inputs, layer.grid_a)):
        for level, clip in zip(grid.levels, clips, strict=True):
            trials = [error_of(values, level, c) for c in np.linspace(0.05, 1.0, 60) * np.abs(values).max()]
            # At 8 bits the grid reaches beyond its clip value, which the estimate leaves out.
            assert error_of(values, level, clip) <= min(trials) * (1.05 if level.bits < 8 else 1.25)


@pytest.mark.parametrize(("method", "expected"), [("percentile", ranges.percentile), ("min-max", ranges.min_max)])
def test_other_methods_give_all_bitwidths_one(tmp_path, data, method, expected):
    layer = calibrated(tmp_path, data, method=method, weight_sigmas=2.75).layers["layer2.1.conv1"]
    weights, inputs = clips_of(layer)
    samples = ranges.Samples()
    samples.update(inputs_of(data, "layer2.1.conv1"))
    clip = expected(samples, 99.9) if method == "percentile" else expected(samples)
    assert weights == pytest.approx([2.75] * 3) and inputs == pytest.approx([clip] * 3)


def test_the_first_layer_reads_negative_values_and_the_others_do_not(tmp_path, data):
    network = calibrated(tmp_path, data)
    assert {name for name, layer in network.layers.items() if layer.grid_a.role == "signed"} == {"conv1"}


def test_fixed_layers_have_their_8_bits_only(tmp_path, data):
    network = calibrated(tmp_path, data, bits=(2, 4))
    for name, layer in network.layers.items():
        assert layer.grid_w.bits == layer.grid_a.bits == ((8,) if name in network.topology.fixed else (2, 4))
        assert layer.ratio_w.shape == layer.ratio_a.shape == (len(layer.grid_w.bits),)
        assert layer.ratio_w[-1] == layer.ratio_a[-1] == 1


def test_pruning_alone_needs_no_clip_values(tmp_path, data):
    network = calibrated(tmp_path, data, mode="prune")
    assert all(layer.gates_w is None and layer.grid_w is None for layer in network.layers.values())
