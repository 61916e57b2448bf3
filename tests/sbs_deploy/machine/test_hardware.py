"""What a machine says of itself."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from sbs_deploy.machine.hardware import Hardware, this_hardware

ADA = Hardware(gpu="NVIDIA RTX 4090", compute_capability="8.9", driver="580.1", cuda="13.0")


def test_a_jetson_names_its_release(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").write_text("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic\n")
    assert this_hardware(tmp_path).jetpack == "L4T 36.4.3"


def test_nvml(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class NVMLError(Exception):
        pass

    module = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda handle: "NVIDIA RTX 4090",
        nvmlSystemGetDriverVersion=lambda: b"580.1",
        nvmlDeviceGetCudaComputeCapability=lambda handle: (8, 9),
        nvmlSystemGetCudaDriverVersion_v2=lambda: 13000,
    )
    monkeypatch.setitem(__import__("sys").modules, "pynvml", module)
    monkeypatch.setattr("sbs_deploy.machine.clocks.gpu_name", lambda: "NVIDIA RTX 4090")
    assert this_hardware(tmp_path) == ADA
    assert ADA.sm == "SM89"
