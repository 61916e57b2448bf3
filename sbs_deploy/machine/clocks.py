"""State of this machine: processor, clocks and load, the GPU if there is one, a Jetson's modes.

Throttle reasons are NVML's bits as words (nvml.h, "nvmlClocksEventReasons").
"""

import contextlib
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sbs_deploy.machine.jetson import jetson_state, read_text
from sbs_train.contract.results import Gpu, Machine

VECTOR_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm", "sve")
"""Instruction sets that decide how fast integer convolutions are."""

CLOCK_REASONS = {
    0x1: "idle",
    0x2: "applications clocks setting",
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
    0x100: "display clock setting",
    0x200: "board limit",
    0x400: "reliability voltage",
}
"""Reasons why a GPU's clocks are below their highest, by NVML's bit."""
THROTTLED = tuple(CLOCK_REASONS[bit] for bit in (0x4, 0x8, 0x20, 0x40, 0x80, 0x200, 0x400))
"""Reasons that mean an unwanted slowdown of the GPU."""


def machine_state(root: Path = Path("/")) -> Machine:
    """State from the proc and sys files under `root`, the GPU's through NVML, a Jetson's from its tools."""
    cores = os.cpu_count() or 1
    return Machine(
        cpu=cpu_model(root),
        cores=cores,
        usable_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores,
        cpu_mhz=_cpu_mhz(root),
        vector_flags=vector_flags(root),
        governor=read_text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or None,
        load_average_1min=_load(root),
        os=platform.platform(),
        python=platform.python_version(),
        gpu=gpu_state(),
        jetson=jetson_state(root),
    )


def cpu_model(root: Path = Path("/")) -> str:
    """Name of the processor, or of a Jetson's board."""
    for line in read_text(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name" and value.strip():
            return value.strip()
    return read_text(root / "proc/device-tree/model") or platform.processor() or platform.machine()


def vector_flags(root: Path = Path("/")) -> tuple[str, ...]:
    """Which of VECTOR_FLAGS the processor has."""
    for line in read_text(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip().lower() in ("flags", "features"):
            present = set(value.split())
            return tuple(flag for flag in VECTOR_FLAGS if flag in present)
    return ()


def onednn_limit() -> str:
    """The newest instruction set that oneDNN may use, by its own environment variable; empty for all."""
    return os.environ.get("ONEDNN_MAX_CPU_ISA", "")


def gpu_name() -> str | None:
    """Name of the first NVIDIA GPU; None if there is no GPU."""
    state = gpu_state()
    if state is not None:
        return state.name
    board = read_text(Path("/proc/device-tree/model"))
    if "jetson" in board.lower():
        return board
    return "an NVIDIA GPU" if Path("/dev/nvidia0").exists() else None


def gpu_state() -> Gpu | None:
    """Name, driver, clocks, power, temperature and throttle reasons of the first GPU; None without NVML or a GPU."""
    with open_nvml() as nvml:
        if nvml is None:
            return None
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(0)
        except nvml.NVMLError:
            return None
        queries = {
            "driver": nvml.nvmlSystemGetDriverVersion,
            "sm_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "sm_clock_max_mhz": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM),
            "memory_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
            "memory_clock_max_mhz": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM),
            "power_draw_w": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
            "power_limit_w": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3,
            "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            "throttle_reasons": lambda: clock_reasons(_reason_bits(nvml, handle)),
        }
        state: dict[str, Any] = {"name": str(nvml.nvmlDeviceGetName(handle))}
        for key, query in queries.items():
            try:
                state[key] = query()
            except (nvml.NVMLError, AttributeError):  # the driver or this NVML does not support the query
                state[key] = None
        return Gpu(**state)


def clock_reasons(bits: int) -> tuple[str, ...]:
    """NVML's bits as words; an unknown bit keeps its number."""
    single = [1 << place for place in range(bits.bit_length()) if bits >> place & 1]
    return tuple(CLOCK_REASONS.get(bit, f"{bit:#x}") for bit in single)


@contextlib.contextmanager
def open_nvml() -> Iterator[Any]:
    """Yield the initialised pynvml module, or None if it cannot be used."""
    try:
        import pynvml
    except ImportError:
        yield None
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def _reason_bits(nvml: Any, handle: Any) -> int:
    """Bits of the clock reasons; NVML renamed the query in driver 535 and drops the old name in CUDA 14."""
    try:
        return int(nvml.nvmlDeviceGetCurrentClocksEventReasons(handle))
    except (AttributeError, nvml.NVMLError):
        return int(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))


def _cpu_mhz(root: Path) -> float | None:
    khz = read_text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")
    if khz.isdecimal():
        return int(khz) / 1e3
    found = re.search(r"^cpu MHz\s*:\s*([\d.]+)", read_text(root / "proc/cpuinfo"), re.MULTILINE)
    return float(found[1]) if found else None


def _load(root: Path) -> float | None:
    text = read_text(root / "proc/loadavg")
    return float(text.split()[0]) if text else None
