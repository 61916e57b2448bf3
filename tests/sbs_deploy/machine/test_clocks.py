from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sbs_deploy.machine import clocks

CPUINFO = """processor\t: 0
model name\t: AMD EPYC 7B13
flags\t\t: fpu sse4_2 avx2 avx512_vnni
"""


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_state_from_proc_and_sys(tmp_path: Path) -> None:
    write(tmp_path, "proc/cpuinfo", CPUINFO)
    write(tmp_path, "proc/loadavg", "0.52 0.58 0.59 1/389 12345\n")
    write(tmp_path, "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "performance\n")
    state = clocks.machine_state(tmp_path)
    assert (state.cpu, state.vector_flags) == ("AMD EPYC 7B13", ("avx2", "avx512_vnni"))
    assert (state.governor, state.load_average_1min) == ("performance", 0.52)


def test_a_jetson_has_no_model_name(tmp_path: Path) -> None:
    write(tmp_path, "proc/cpuinfo", "processor\t: 0\nFeatures\t: fp asimd asimddp\n")
    write(tmp_path, "proc/device-tree/model", "NVIDIA Jetson Orin Nano Developer Kit\0")
    state = clocks.machine_state(tmp_path)
    assert state.cpu == "NVIDIA Jetson Orin Nano Developer Kit"
    assert state.vector_flags == ("asimddp",)


def test_nothing_to_read(tmp_path: Path) -> None:
    state = clocks.machine_state(tmp_path)
    assert state.cpu and state.governor is None and state.load_average_1min is None


class NVMLError(Exception):
    pass


def fake_nvml() -> Any:
    def unsupported(*arguments: Any) -> Any:
        raise NVMLError("not supported")

    calls = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetHandleByIndex": lambda index: "handle",
        "nvmlDeviceGetName": lambda handle: "NVIDIA Test",
        "nvmlSystemGetDriverVersion": lambda: "580.1",
        "nvmlDeviceGetClockInfo": lambda handle, kind: 1200 + kind,
        "nvmlDeviceGetMaxClockInfo": lambda handle, kind: 1980,
        "nvmlDeviceGetTemperature": lambda handle, kind: 41,
        "nvmlDeviceGetPowerUsage": lambda handle: 71_500,
        "nvmlDeviceGetEnforcedPowerLimit": lambda handle: 450_000,
        "nvmlDeviceGetCurrentClocksThrottleReasons": unsupported,
    }
    constants = {"NVML_CLOCK_SM": 1, "NVML_CLOCK_MEM": 2, "NVML_TEMPERATURE_GPU": 0}
    return SimpleNamespace(NVMLError=NVMLError, **constants, **calls)


def test_gpu_through_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pynvml", fake_nvml())
    state = clocks.gpu_state()
    assert state is not None
    assert (state.name, state.sm_clock_mhz, state.memory_clock_mhz) == ("NVIDIA Test", 1201, 1202)
    assert state.throttle_reasons is None, "what the driver does not tell is None"
    assert clocks.gpu_name() == "NVIDIA Test"


def test_power_and_reasons_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    module = fake_nvml()
    module.nvmlDeviceGetCurrentClocksThrottleReasons = lambda handle: 0x4 | 0x20 | 0x800
    monkeypatch.setitem(__import__("sys").modules, "pynvml", module)
    state = clocks.gpu_state()
    assert state is not None
    assert (state.power_draw_w, state.power_limit_w) == (71.5, 450.0)
    assert state.throttle_reasons == ("software power cap", "software thermal slowdown", "0x800")
    module.nvmlDeviceGetCurrentClocksEventReasons = lambda handle: 0
    assert (state := clocks.gpu_state()) is not None and state.throttle_reasons == (), "the new name is asked first"


def test_a_driver_without_reasons_where_nvml_has_only_the_new_name(monkeypatch: pytest.MonkeyPatch) -> None:
    module = fake_nvml()
    module.nvmlDeviceGetCurrentClocksEventReasons = module.nvmlDeviceGetCurrentClocksThrottleReasons  # refuses
    del module.nvmlDeviceGetCurrentClocksThrottleReasons
    monkeypatch.setitem(__import__("sys").modules, "pynvml", module)
    state = clocks.gpu_state()
    assert state is not None and state.throttle_reasons is None and state.power_draw_w == 71.5


def test_the_words_are_nvmls_own() -> None:
    pynvml = pytest.importorskip("pynvml")
    bits = {name: getattr(pynvml, name) for name in dir(pynvml) if name.startswith("nvmlClocksThrottleReason")}
    known = {bit for name, bit in bits.items() if not name.endswith(("All", "None")) and bit}
    assert known <= set(clocks.CLOCK_REASONS)
    for name, word in (("SwPowerCap", "software power cap"), ("HwThermalSlowdown", "hardware thermal slowdown")):
        assert clocks.CLOCK_REASONS[bits[f"nvmlClocksThrottleReason{name}"]] == word


def test_the_processors_clock(tmp_path: Path) -> None:
    write(tmp_path, "proc/cpuinfo", CPUINFO + "cpu MHz\t\t: 2445.428\n")
    assert clocks.machine_state(tmp_path).cpu_mhz == 2445.428
    write(tmp_path, "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", "1510400\n")
    assert clocks.machine_state(tmp_path).cpu_mhz == 1510.4
    assert 1 <= clocks.machine_state(tmp_path).usable_cores <= clocks.machine_state(tmp_path).cores


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise NVMLError("library not found")

    module = fake_nvml()
    module.nvmlInit = fail
    monkeypatch.setitem(__import__("sys").modules, "pynvml", module)
    assert clocks.gpu_state() is None
