"""The GPU and its software, as an engine's manifest records them, and whether an engine fits those of this machine."""

import contextlib
import re
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sbs_deploy.bench import clocks

RTX_NEWEST = "SM120"
"""Engines of TensorRT-RTX for this chip run on newer ones as well (NVIDIA's support matrix)."""


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """None where there is no GPU, or the system does not tell."""

    gpu: str | None = None
    compute_capability: str | None = None
    """Such as 8.9."""
    driver: str | None = None
    cuda: str | None = None
    """Newest CUDA version the driver serves."""
    jetpack: str | None = None
    """On a Jetson: JetPack's version, else that of Jetson Linux (L4T)."""

    @property
    def sm(self) -> str | None:
        """SM89 of compute capability 8.9."""
        return None if self.compute_capability is None else "SM" + self.compute_capability.replace(".", "")

    def as_json(self) -> dict[str, Any]:
        """What is known."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def this_hardware(root: Path = Path("/")) -> Hardware:
    """Ask NVML, and on a Jetson the files of Jetson Linux."""
    found: dict[str, str | None] = {"gpu": clocks.gpu_name(), "jetpack": _jetpack(root)}
    with clocks.open_nvml() as nvml:
        if nvml is not None:
            with contextlib.suppress(nvml.NVMLError):
                handle = nvml.nvmlDeviceGetHandleByIndex(0)
                found["driver"] = _text(nvml.nvmlSystemGetDriverVersion())
                major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
                found["compute_capability"] = f"{major}.{minor}"
                version = nvml.nvmlSystemGetCudaDriverVersion_v2()
                found["cuda"] = f"{version // 1000}.{version % 1000 // 10}"
    return Hardware(**found)


def engine_problem(
    details: Mapping[str, Any], versions: Mapping[str, str], module: str, version: str, here: Hardware
) -> str | None:
    """Why an engine with this manifest cannot run here, or None; what is not known is not held against it.

    Args:
        details, versions: of the engine's manifest.
        module, version: of TensorRT here.
        here: this machine.
    """
    built_with = versions.get(module)
    if built_with is not None and built_with != version:
        before, now = _numbers(built_with), _numbers(version)
        # Compatible engines run with newer versions of the same major one (TensorRT's support matrix).
        newer = before[:1] == now[:1] and before <= now
        if not (details.get("settings", {}).get("version_compatible") and newer):
            return f"it was built by {module} {built_with}, here is {version}"
    chips = details.get("compute_capabilities") or []
    if chips and here.sm is not None:
        later = RTX_NEWEST in chips and _numbers(here.sm) > _numbers(RTX_NEWEST)
        return None if here.sm in chips or later else f"it was built for {', '.join(chips)}, here is {here.sm}"
    built_on = details.get("hardware", {})
    level = details.get("settings", {}).get("hardware_compatibility", "none")
    if not chips and level == "none" and built_on.get("gpu") and here.gpu and built_on["gpu"] != here.gpu:
        return f"it was built on {built_on['gpu']}, here is {here.gpu}"
    capability = built_on.get("compute_capability")
    if level == "same-compute-capability" and capability and here.compute_capability not in (None, capability):
        return f"it was built for compute capability {capability}, here is {here.compute_capability}"
    return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def _jetpack(root: Path) -> str | None:
    """JetPack's package, or the release line of Jetson Linux: `# R36 (release), REVISION: 4.3, …`."""
    release = root / "etc/nv_tegra_release"
    if not release.is_file():
        return None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["dpkg-query", "--showformat", "${Version}", "--show", "nvidia-jetpack"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
        if answer:
            return f"JetPack {answer}"
    found = re.search(r"R(\d+).*?REVISION: ([\d.]+)", release.read_text(encoding="utf-8", errors="replace"))
    return f"L4T {found[1]}.{found[2]}" if found else None


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
