"""The machine a number was measured on: processor, its clocks and load, and the GPU where there is one."""

import contextlib
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

VECTOR_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm", "sve")
"""Instruction sets that decide how fast integer convolutions are."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """State of this machine at one moment; None where the system does not tell."""

    cpu: str
    cores: int
    vector_flags: tuple[str, ...]
    governor: str | None
    load_average_1min: float | None
    os: str
    python: str
    gpu: dict[str, Any] | None

    def as_json(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)


def machine_state(root: Path = Path("/")) -> Machine:
    """Read the machine's state from the proc and sys files under `root`, and its GPU through NVML."""
    return Machine(
        cpu=cpu_model(root),
        cores=os.cpu_count() or 1,
        vector_flags=vector_flags(root),
        governor=_text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        load_average_1min=_load(root),
        os=platform.platform(),
        python=platform.python_version(),
        gpu=gpu_state(),
    )


def cpu_model(root: Path = Path("/")) -> str:
    """Name of the processor; on a Jetson, of the board."""
    for line in (_text(root / "proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name" and value.strip():
            return value.strip()
    board = _text(root / "proc/device-tree/model")
    return board.strip("\0") if board else platform.processor() or platform.machine()


def vector_flags(root: Path = Path("/")) -> tuple[str, ...]:
    """Which of VECTOR_FLAGS the processor has."""
    for line in (_text(root / "proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip().lower() in ("flags", "features"):
            present = set(value.split())
            return tuple(flag for flag in VECTOR_FLAGS if flag in present)
    return ()


def gpu_name() -> str | None:
    """Name of the first NVIDIA GPU, or None where there is none."""
    state = gpu_state()
    if state is not None:
        return str(state["name"])
    board = _text(Path("/proc/device-tree/model")) or ""
    if "jetson" in board.lower():
        return board.strip("\0")
    return "an NVIDIA GPU" if Path("/dev/nvidia0").exists() else None


def gpu_state() -> dict[str, Any] | None:
    """Name, driver, clocks and throttle reasons of the first GPU, or None without NVML or a GPU."""
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
            "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            "throttle_reasons": lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
        }
        state: dict[str, Any] = {"name": nvml.nvmlDeviceGetName(handle)}
        for key, query in queries.items():
            try:
                state[key] = query()
            except nvml.NVMLError:
                state[key] = None
        return state


@contextlib.contextmanager
def open_nvml() -> Iterator[Any]:
    """The pynvml module, initialised, or None."""
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


def _load(root: Path) -> float | None:
    text = _text(root / "proc/loadavg")
    return float(text.split()[0]) if text else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
