"""`sbs-deploy predict`: the milliseconds of a run's plan against the measured surfaces, added up by hand."""

import json

import pytest

from sbs_deploy import cli
from sbs_train.contract import rundir
from sbs_train.contract.device import save_device
from sbs_train.contract.plan import save_plan
from sbs_train.stages.rule import freeze
from tests.sbs_train.devices import device_for
from tests.sbs_train.small import small_network


@pytest.fixture
def run(tmp_path):
    """A run whose plan halves one group, at which the made-up device was measured, and the device's file."""
    network = small_network()
    run = rundir.create_run(tmp_path / "run")
    run.config.write_text("{}")
    save_plan(freeze(network, {}, {}, {"layer1.0.conv1": [0, 1, 2, 3]}), run.plan)
    device = device_for(network)
    save_device(device, tmp_path / "device.json")
    return run.root, tmp_path / "device.json", device


def test_the_sum_is_that_of_the_surfaces_at_the_plans_channels(run, capsys):
    root, path, device = run
    assert cli.main(["predict", str(root), "--cost", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    (network,) = device.networks
    surfaces = {step.name: device.surfaces[step.surface] for step in network.layers}
    halved = surfaces["layer1.0.conv1"], surfaces["layer1.0.conv2"]
    saved = halved[0].ms[-1][-1] - halved[0].ms[-1][-2] + halved[1].ms[-1][-1] - halved[1].ms[-2][-1]
    assert saved > 0 and found["ms"] == pytest.approx(network.quantized_ms - saved)
    assert found["ms_fp32"] == network.fp32_ms
    assert found["ms"] == pytest.approx(sum(row["ms"] for row in found["layers"]) + found["between_ms"])
    (row,) = (row for row in found["layers"] if row["name"] == "layer1.0.conv2")
    assert row["kept_in"] == 4 and row["ms"] == pytest.approx(halved[1].ms[-2][-1])


def test_a_device_that_measured_another_network_is_one_line(run, tmp_path, capsys):
    save_device(device_for(small_network(width=4)), tmp_path / "other.json")
    assert cli.main(["predict", str(run[0]), "--cost", str(tmp_path / "other.json")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "profile-device" in line
