"""The GPU and its software, as an engine's manifest records them."""

import contextlib
import re
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sbs_deploy.machine import clocks


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """GPU and software of a machine; None for parts that are missing or unknown."""

    gpu: str | None = None
    compute_capability: str | None = None
    """Compute capability, such as 8.9."""
    driver: str | None = None
    cuda: str | None = None
    """Newest CUDA version that the driver supports."""
    jetpack: str | None = None
    """On a Jetson: JetPack 6.2.1, or L4T 36.4.4 (Jetson Linux) without JetPack's package."""

    @property
    def sm(self) -> str | None:
        """Compute capability in the form SM89; None if unknown."""
        return None if self.compute_capability is None else "SM" + self.compute_capability.replace(".", "")

    def as_json(self) -> dict[str, Any]:
        """All known values."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def this_hardware(root: Path = Path("/")) -> Hardware:
    """Hardware of this machine, from NVML, and on a Jetson from files of Jetson Linux."""
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


def _jetpack(root: Path) -> str | None:
    """Version from JetPack's package, or from Jetson Linux' release line `# R36 (release), REVISION: 4.3, …`."""
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
