"""What milliseconds can buy: the range of a made-up device, and a cliff that was put into its prices."""

import json

import pytest

from sbs_train import cli
from sbs_train.contract.device import save_device
from sbs_train.stages.cliffs import _cliffs
from tests.sbs_train.devices import device_for
from tests.sbs_train.small import small_network

NETWORK = small_network(prune="coupled")


def test_prices_in_proportion_to_macs_have_no_cliff(tmp_path, capsys):
    device, path = device_for(NETWORK), tmp_path / "device.json"
    save_device(device, path)
    command = ["profile", "--width", "8", "--input", "1,8,8", "--cost", str(path), "--json"]
    assert cli.main(command) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["budgets"]
    (least, most), dense = found["reachable_ms"], device.networks[0]
    # In float a layer takes three times as long.
    assert most == pytest.approx(3 * dense.quantized_ms) and found["ms_fp32"] == dense.fp32_ms
    assert found["reachable_x"] == [pytest.approx(dense.fp32_ms / ms) for ms in (most, least)]
    macs, ms = ([point[name] for point in found["points"]] for name in ("macs", "ms"))
    assert macs == sorted(set(macs)) and macs[-1] == pytest.approx(1.0) and max(ms) <= most * (1 + 1e-6)
    assert not found["cliffs"]


def test_a_cliff_is_a_small_step_that_buys_twice_as_much_as_a_step_of_its_size_does():
    def point(ms, macs, kept):
        return {"ms": ms, "macs": macs, "kept": {"a": kept, "b": 4}}

    # One millisecond buys 0.4 in the mean: 0.05 ms at a cliff buy 0.04 or more.
    points = [point(1.0, 0.2, 8), point(1.5, 0.4, 8), point(1.55, 0.45, 16), point(2.0, 0.5, 16), point(2.05, 0.53, 20)]
    points += [point(3.0, 1.0, 32)]
    (cliff,) = _cliffs(points)
    assert cliff == {"ms": [1.5, 1.55], "macs": [0.4, 0.45], "channels": {"a": [8, 16]}}
    assert _cliffs(points[:1]) == []


def test_a_device_without_this_network_is_one_line(tmp_path, capsys):
    save_device(device_for(NETWORK), tmp_path / "device.json")
    command = ["profile", "--width", "4", "--input", "1,8,8", "--cost", str(tmp_path / "device.json")]
    assert cli.main(command) == 2
    assert "profile-device" in capsys.readouterr().err.splitlines()[-1]
