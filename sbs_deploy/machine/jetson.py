"""State of a Jetson, from NVIDIA's own tools: power mode, clocks, temperatures, power.

Values are None if their tool is missing, needs root, or hangs. Formats are those of the Jetson Linux Developer Guide,
"Platform Power and Performance" and "tegrastats Utility", and of the output of JetPack 4 to 7.
"""

import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sbs_train.contract.results import Jetson, JetsonClocks

TIMEOUT_S = 5.0
SAMPLE_TIMEOUT_S = 1.5
"""Seconds until tegrastats, which never ends by itself, is stopped; its first line comes after one interval."""
SAMPLE_INTERVAL_MS = 200

Runner = Callable[[Sequence[str], float], str | None]
"""A function from a command and a time limit in seconds to the command's output, or None."""


@dataclass(frozen=True, kw_only=True)
class PowerMode:
    """A mode of nvpmodel; its number differs from module to module."""

    name: str
    """MAXN, MAXN_SUPER, MODE_30W, 15W, ..."""
    id: int

    @property
    def rank(self) -> tuple[bool, bool, int]:
        """Sort key of modes by power: MAXN has no limit, and MAXN_SUPER higher clocks."""
        watts = re.search(r"(\d+)W", self.name)
        return self.name.startswith("MAXN"), "SUPER" in self.name, int(watts[1]) if watts else 0


def jetson_state(root: Path = Path("/"), run: Runner | None = None) -> Jetson | None:
    """Power mode, clocks and one sample of tegrastats; None on other machines than a Jetson."""
    if not is_jetson(root):
        return None
    run = run or run_command
    mode = parse_power_mode(run(["nvpmodel", "-q"], TIMEOUT_S) or "")
    modes = parse_power_modes(read_text(root / "etc/nvpmodel.conf"))
    best = max(modes, key=lambda one: one.rank, default=None)
    clocks = parse_clocks(run(["jetson_clocks", "--show"], TIMEOUT_S) or "") or _clocks_from_sysfs(root)
    sample = run(["tegrastats", "--interval", str(SAMPLE_INTERVAL_MS)], SAMPLE_TIMEOUT_S) or ""
    return Jetson(
        power_mode=mode.name if mode else None,
        power_mode_id=mode.id if mode else None,
        power_mode_max=best.name if best else None,
        power_mode_max_id=best.id if best else None,
        clocks=clocks,
        tegrastats=parse_tegrastats(sample),
    )


def is_jetson(root: Path = Path("/")) -> bool:
    """Whether the board's device tree says so, or Jetson Linux is installed."""
    board = read_text(root / "proc/device-tree/model").lower()
    return "jetson" in board or (root / "etc/nv_tegra_release").is_file()


def parse_power_mode(text: str) -> PowerMode | None:
    """Parse `nvpmodel -q`: warnings, then `NV Power Mode: NAME`, then the number of the mode."""
    found = re.search(r"NV Power Mode:[ \t]*(\S+)\s+(\d+)", text)
    return PowerMode(name=found[1].removeprefix("MODE_"), id=int(found[2])) if found else None


def parse_power_modes(text: str) -> list[PowerMode]:
    """Parse /etc/nvpmodel.conf: `< POWER_MODEL ID=2 NAME=MAXN_SUPER >` for each mode of this module."""
    found = re.findall(r"^\s*<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+?)\s*>", text, re.MULTILINE)
    return [PowerMode(name=name.removeprefix("MODE_"), id=int(number)) for number, name in found]


def parse_clocks(text: str) -> JetsonClocks | None:
    """Parse `jetson_clocks --show`: whether clocks are pinned (min = max), and clocks of GPU and memory in MHz."""
    lines = re.findall(r"^(\w+)\b.*?\bMinFreq=(\d+) MaxFreq=(\d+) CurrentFreq=(\d+)", text, re.MULTILINE)
    offline = set(re.findall(r"^(cpu\d+): +Online=0", text, re.MULTILINE))
    clocks = {name: (int(least), int(most), int(now)) for name, least, most, now in lines if name not in offline}
    if "GPU" not in clocks:
        return None
    pinned = all(least == most for name, (least, most, _) in clocks.items() if name == "GPU" or name.startswith("cpu"))
    return JetsonClocks(pinned=pinned, gpu_mhz=_mhz(clocks["GPU"]), memory_mhz=_mhz(clocks.get("EMC")))


def parse_tegrastats(text: str) -> dict[str, Any] | None:
    """Parse the last complete line of tegrastats: temperatures, power of each rail, load and clock of the GPU.

    GR3D_FREQ is `45%@918`, `0%@[305]`, or without load `@[1574,1574,1574]`: one clock for each graphics cluster.
    """
    lines = [line for line in text.splitlines() if "GR3D_FREQ" in line]
    if not lines:
        return None
    line = lines[-1]
    gpu = re.search(r"GR3D_FREQ\s+(?:(\d+)%)?(?:@\[?([\d,]+))?", line)
    clocks = [int(part) for part in (gpu[2] or "").split(",") if part] if gpu else []
    return {
        "gpu_load_percent": int(gpu[1]) if gpu and gpu[1] else None,
        "gpu_mhz": clocks or None,
        "temperatures_c": {name: float(value) for name, value in re.findall(r"\b(\w+)@(-?[\d.]+)C\b", line)},
        "power_mw": {name: int(now) for name, now in re.findall(r"\b(V[A-Z0-9_]+|POM_\w+) (\d+)(?:mW)?/", line)},
    }


def run_command(command: Sequence[str], timeout_s: float) -> str | None:
    """Output of a command, up to `timeout_s` if it runs longer; None if the command is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout_s, check=True)
    except subprocess.TimeoutExpired as expired:
        return expired.stdout.decode(errors="replace") if expired.stdout else None
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.decode(errors="replace")


def _clocks_from_sysfs(root: Path) -> JetsonClocks | None:
    """Clocks from the kernel's devfreq and cpufreq files, without jetson_clocks, which needs root."""
    for folder in sorted((root / "sys/class/devfreq").glob("*")):
        if re.search(r"gpu|gv11b|gp10b|ga10b|gb10b", folder.name):
            gpu = [_number(folder / f"{name}_freq") for name in ("min", "max", "cur")]
            break
    else:
        return None
    cpus = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq")
    ranges = [[_number(cpu / f"scaling_{end}_freq") for end in ("min", "max")] for cpu in cpus]
    if None in gpu:
        return None
    pinned = gpu[0] == gpu[1] and all(least == most for least, most in ranges)
    return JetsonClocks(pinned=pinned, gpu_mhz=_mhz(tuple(value or 0 for value in gpu)), memory_mhz=None)


def _mhz(hertz: tuple[int, ...] | None) -> dict[str, int] | None:
    return (
        None
        if hertz is None
        else dict(zip(("min", "max", "current"), (value // 10**6 for value in hertz), strict=True))
    )


def _number(path: Path) -> int | None:
    text = read_text(path)
    return int(text) if text.isdecimal() else None


def read_text(path: Path) -> str:
    """Text of a system file without zeros at its end; empty if the file is missing."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip().strip("\0")
    except OSError:
        return ""
