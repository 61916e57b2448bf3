from typing import Any

import pytest

from sbs_deploy.measure.protocol import Measurement
from sbs_deploy.measure.warn import build_warnings, enqueue_warnings, machine_warnings, time_warnings
from sbs_train.contract.results import Gpu, Jetson, JetsonClocks, Machine, Machines


def clocks(*, pinned: bool) -> JetsonClocks:
    return JetsonClocks(pinned=pinned, gpu_mhz=None, memory_mhz=None)


def machine(*reasons: str, **jetson: Any) -> Machine:
    gpu = Gpu(name="NVIDIA Test", throttle_reasons=reasons) if reasons else None
    return Machine(gpu=gpu, jetson=Jetson(**jetson) if jetson else None)


def warned(before: Machine, after: Machine, *, on_gpu: bool) -> list[str]:
    return machine_warnings(Machines(before=before, after=after), on_gpu=on_gpu)


def test_a_gpu_that_throttled() -> None:
    cold, hot = machine("idle"), machine("software thermal slowdown", "software power cap")
    assert warned(cold, cold, on_gpu=True) == []
    words = warned(cold, hot, on_gpu=True)
    assert words == [
        "the GPU throttled (software power cap, after)",
        "the GPU throttled (software thermal slowdown, after)",
    ]
    assert "before and after" in warned(hot, hot, on_gpu=True)[0]
    assert warned(cold, hot, on_gpu=False) == [], "rows of the CPU do not care"
    assert warned(machine(), machine(), on_gpu=True) == []


def test_a_jetson_that_is_not_at_its_fastest() -> None:
    slow = machine(power_mode="15W", power_mode_max="MAXN_SUPER", power_mode_max_id=2, clocks=clocks(pinned=False))
    words = warned(slow, slow, on_gpu=False)
    assert "power mode 15W, its largest is MAXN_SUPER: `sudo nvpmodel -m 2`" in words[0]
    assert "`sudo jetson_clocks`" in words[1]
    fast = machine(power_mode="MAXN", power_mode_max="MAXN", power_mode_max_id=0, clocks=clocks(pinned=True))
    unknown = machine(power_mode=None, power_mode_max=None, clocks=None)
    assert warned(fast, fast, on_gpu=True) == warned(unknown, unknown, on_gpu=True) == []


@pytest.mark.parametrize(("enqueue_ms", "said"), [(None, False), (0.8, False), (0.81, True), (2.0, True)])
def test_a_host_that_is_hardly_faster_than_its_gpu(enqueue_ms: float | None, said: bool) -> None:
    assert bool(enqueue_warnings(enqueue_ms, 1.0, "off")) == said


@pytest.mark.parametrize("state", ["off: asked for", "off: pycuda has no CUDA graphs", "captured", "rtx"])
def test_a_cuda_graph_is_the_remedy_where_there_is_none(state: str) -> None:
    (warning,) = enqueue_warnings(1.0, 1.0, state)
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
