from dataclasses import replace
from typing import Any

import pytest

from sbs_deploy.machine import clocks
from sbs_deploy.measure.protocol import Measurement
from sbs_deploy.measure.warn import build_warnings, enqueue_warnings, machine_warnings, time_warnings

HERE = replace(clocks.machine_state(), gpu=None, jetson=None)


def machine(reasons: list[str] | None = None, **jetson: Any) -> clocks.Machine:
    gpu = None if reasons is None else {"name": "NVIDIA Test", "throttle_reasons": reasons}
    return replace(HERE, gpu=gpu, jetson=jetson or None)


def test_a_gpu_that_throttled() -> None:
    cold, hot = machine(["idle"]), machine(["software thermal slowdown", "software power cap"])
    assert machine_warnings(cold, cold, on_gpu=True) == []
    words = machine_warnings(cold, hot, on_gpu=True)
    assert words == [
        "the GPU throttled (software power cap, after)",
        "the GPU throttled (software thermal slowdown, after)",
    ]
    assert "before and after" in machine_warnings(hot, hot, on_gpu=True)[0]
    assert machine_warnings(cold, hot, on_gpu=False) == [], "rows of the CPU do not care"
    assert machine_warnings(machine(), machine(), on_gpu=True) == []


def test_a_jetson_that_is_not_at_its_fastest() -> None:
    slow = machine(power_mode="15W", power_mode_max="MAXN_SUPER", power_mode_max_id=2, clocks={"pinned": False})
    words = machine_warnings(slow, slow, on_gpu=False)
    assert "power mode 15W, its largest is MAXN_SUPER: `sudo nvpmodel -m 2`" in words[0]
    assert "`sudo jetson_clocks`" in words[1]
    fast = machine(power_mode="MAXN", power_mode_max="MAXN", power_mode_max_id=0, clocks={"pinned": True})
    unknown = machine(power_mode=None, power_mode_max=None, clocks=None)
    assert machine_warnings(fast, fast, on_gpu=True) == machine_warnings(unknown, unknown, on_gpu=True) == []


@pytest.mark.parametrize(("enqueue_ms", "warned"), [(None, False), (0.8, False), (0.81, True), (2.0, True)])
def test_a_host_that_is_hardly_faster_than_its_gpu(enqueue_ms: float | None, warned: bool) -> None:
    assert bool(enqueue_warnings(enqueue_ms, 1.0, {})) == warned


@pytest.mark.parametrize("state", ["off: asked for", "off: pycuda has no CUDA graphs", "captured", "rtx"])
def test_a_cuda_graph_is_the_remedy_where_there_is_none(state: str) -> None:
    (warning,) = enqueue_warnings(1.0, 1.0, {"cuda_graph": state})
    assert ("a CUDA graph takes that away" in warning) == state.startswith("off")
    assert (state in warning) == state.startswith("off"), "and why there is none"


def test_builds_that_differ() -> None:
    assert build_warnings([1.0]) == build_warnings([1.0, 1.04]) == []
    assert "its 2 builds differ by 10.0%" in build_warnings([1.0, 1.1])[0]


def test_times_that_vary() -> None:
    steady = Measurement(rounds_ms=((1.0, 1.0),))
    moving = Measurement(rounds_ms=((1.0, 1.5),), warm=False)
    assert time_warnings(steady, steady.latency()) == []
    assert len(time_warnings(moving, moving.latency())) == 2
