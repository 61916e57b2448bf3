"""Whole runs whose cost is in milliseconds of a made-up device."""

import hashlib
import json

import pytest

from sbs_train import cli
from sbs_train.contract.device import load_device, save_device
from sbs_train.contract.latency import network_in, predicted_ms
from sbs_train.contract.plan import load_plan
from sbs_train.contract.rundir import RunDir
from sbs_train.stages.weights import restore
from sbs_train.tables import si
from tests.sbs_train.devices import device_for
from tests.sbs_train.small import small_network
from tests.sbs_train.stages.test_run import train


@pytest.fixture(scope="module")
def device(tmp_path_factory):
    """The file, for the network that `train` builds, and what its dense network takes."""
    path = tmp_path_factory.mktemp("device") / "device.json"
    model = device_for(small_network(width=4, size=16))
    save_device(model, path)
    return path, model.networks[0].quantized_ms


def budget_of(run):
    return json.loads((run / "metrics.json").read_text())["budget"]


@pytest.mark.parametrize("metric", ["loss", pytest.param("error", marks=pytest.mark.slow)])
def test_a_latency_is_met_with_channels_and_no_bits_are_given_up(device, tmp_path, metric):
    path, dense_ms = device
    wanted = 0.8 * dense_ms
    run = train(tmp_path / "run", "--cost", str(path), "--target", f"{wanted}ms", "--search.metric", metric)
    plan, budget = load_plan(run / "plan.json"), budget_of(run)
    assert budget["unit"] == "ms" and budget["expected_ms"] <= wanted * (1 + 1e-6) and budget["reached"]
    assert budget["reduction"] == pytest.approx(3 * dense_ms / budget["expected_ms"])
    if metric == "loss":
        assert {row.bits_w for row in plan.layers} == {row.bits_a for row in plan.layers} == {8}
        assert budget["expected_ms"] > 0.95 * wanted
    assert any(len(group.kept) < group.size for group in plan.groups)


@pytest.mark.slow  # a training
def test_a_ratio_is_relative_to_dense_fp32_there_and_bops_may_be_limited_as_well(device, tmp_path):
    path, _ = device
    run = train(tmp_path / "run", "--cost", str(path), "--target", "3.5x", "--max-bops", "20M")
    budget, plan = budget_of(run), load_plan(run / "plan.json")
    assert budget["reduction"] >= 3.5 and plan.cost.bops <= 20e6 * (1 + 1e-6)


@pytest.mark.slow  # a training
def test_the_device_is_taken_down_with_the_hash_of_its_file(device, tmp_path, capsys):
    model = load_device(device[0]).model_copy(update={"batch": 8})
    path = tmp_path / "device.json"
    save_device(model, path)
    run = train(tmp_path / "run", "--cost", str(path), "--target", "3.5x")
    assert budget_of(run)["device"] == {
        "target": "onnxruntime",
        "device": "paper machine",
        "precision": "int8",
        "batch": 8,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    assert " ms expected per batch of 8, " in capsys.readouterr().err


@pytest.mark.slow  # a training
def test_a_latency_out_of_reach_ends_with_1_and_the_range_in_milliseconds(device, tmp_path, capsys):
    path, dense_ms = device
    train(tmp_path / "run", "--cost", str(path), "--target", f"{0.01 * dense_ms}ms", code=1)
    assert " ms" in capsys.readouterr().err.splitlines()[-1]
    assert not budget_of(tmp_path / "run")["reached"]


@pytest.mark.slow  # the other way round is in the fast suite
def test_bops_out_of_reach_are_named_and_not_the_milliseconds_within(device, tmp_path, capsys):
    """The least is that of a run that asks for fewer BOPs than there can be."""
    path, dense_ms = device
    far_flags = ("--target", "100000x", "--search.prune", "coupled")  # as --cost does by default
    far = load_plan(train(tmp_path / "far", *far_flags, code=1) / "plan.json").cost.bops
    capsys.readouterr()
    run = train(tmp_path / "run", "--cost", str(path), "--target", f"{0.8 * dense_ms}ms", "--max-bops", "1K", code=1)
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"--max-bops 1K cannot be reached by this model in mode joint, which needs {si(far)} BOPs at least" in line
    assert "--target" not in line and "goes from" not in line
    assert f"{si(load_plan(run / 'plan.json').cost.bops)} BOPs) is in {run}" in line


@pytest.mark.slow  # a training
def test_milliseconds_out_of_reach_are_named_and_not_the_bops_within(device, tmp_path, capsys):
    path, dense_ms = device
    train(tmp_path / "run", "--cost", str(path), "--target", f"{0.01 * dense_ms}ms", "--max-bops", "1T", code=1)
    line = capsys.readouterr().err.splitlines()[-1]
    assert "ms cannot be reached by this model in mode joint, which goes from " in line and "--max-bops" not in line


def test_a_target_within_reach_that_nothing_was_searched_for_is_not_called_out_of_reach(tmp_path, capsys):
    run = train(tmp_path / "run", "--target", "60x", "--search.epochs", "0", code=1)
    line = capsys.readouterr().err.splitlines()[-1]
    assert "--search.epochs 0" in line and "cannot be reached" not in line and not budget_of(run)["reached"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--target", "1ms"], "--cost device.json"),
        (["--cost", "none.json", "--target", "1ms"], "none.json"),
        (["--max-bops", "5G"], "--max-bops"),
        (["--cost", "DEVICE", "--target", "32G"], "--max-bops"),
        (["--cost", "DEVICE", "--target", "2x", "--width", "8"], "profile-device"),
    ],
)
def test_bad_input_is_one_line_before_any_work(device, tmp_path, capsys, flags, words):
    flags = [str(device[0]) if flag == "DEVICE" else flag for flag in flags]
    assert cli.main(["--width", "4", "--out", str(tmp_path / "run"), *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line and not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["loss", "error"])
def test_channels_are_kept_in_the_steps_of_the_device(tmp_path, metric):
    model = device_for(small_network(width=16, size=16))
    save_device(model, tmp_path / "device.json")
    wanted = 0.8 * model.networks[0].quantized_ms
    flags = ["--width", "16", "--search.group-size", "1", "--search.metric", metric]
    run = train(tmp_path / "run", "--cost", str(tmp_path / "device.json"), "--target", f"{wanted}ms", *flags)
    groups = [group for group in load_plan(run / "plan.json").groups if group.prunable]
    assert all(len(group.kept) % (group.size // 4) == 0 for group in groups)
    assert any(len(group.kept) < group.size for group in groups)


@pytest.mark.slow
def test_layers_that_float_suits_better_stay_in_float(tmp_path):
    """Float costs a tenth there in depthwise layers, and twice as much elsewhere."""
    model = device_for(small_network(model="mobilenetv2", width=8, size=16), float_factor=2.0, depthwise_factor=0.1)
    save_device(model, tmp_path / "device.json")
    flags = ["--model", "mobilenetv2", "--width", "8", "--target", f"{0.8 * model.networks[0].quantized_ms}ms"]
    run = train(tmp_path / "run", "--cost", str(tmp_path / "device.json"), *flags)
    plan = load_plan(run / "plan.json")
    assert {row.bits_w for row in plan.layers if row.kind == "depthwise"} == {32}
    assert 8 in {row.bits_w for row in plan.layers if row.kind == "conv"}
    assert all(row.bits_w == row.bits_a for row in plan.layers)
    assert budget_of(run)["expected_ms"] == pytest.approx(predicted_ms(model, network_in(model, plan), plan))
    network, restored = restore(RunDir(run))
    assert restored == plan
    assert {name for name, layer in network.layers.items() if layer.gates_w is None} == {
        row.name for row in plan.layers if not row.quantized
    }
