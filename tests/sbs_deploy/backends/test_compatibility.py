"""Versions against the tables; cases are devices as their owners report them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sbs_deploy import doctor
from sbs_deploy.backends.compatibility import (
    JETPACKS,
    RTX_CAPABILITIES,
    MachineFacts,
    VersionCheck,
    examine_versions,
    jetpack_of,
)
from sbs_deploy.backends.request import RTX_COMPUTE_CAPABILITIES
from sbs_deploy.backends.spec import backend_named

ORIN = {"architecture": "aarch64", "compute_capability": "8.7"}
ORT = {"onnxruntime": "1.32.0"}


def find(facts: MachineFacts, what: str) -> VersionCheck:
    (finding,) = (finding for finding in examine_versions(facts) if finding.what == what)
    return finding


def test_a_jetson_as_jetpack_left_it_fits() -> None:
    for jetpack, python, tensorrt in (
        ("JetPack 6.2.1+b38", "3.10.12", "10.3.0"),
        ("L4T 36.4.7", "3.10.12", "10.7.0"),
        ("JetPack 7.0", "3.12.3", "10.13.3.9"),
        ("JetPack 7.2.1-b49", "3.12.3", "10.16.2.10"),
        ("JetPack 7.2.2", "3.12.3", "11.4.1"),
    ):
        facts = MachineFacts(python=python, jetpack=jetpack, modules={"tensorrt": tensorrt}, packages=ORT, **ORIN)
        findings = examine_versions(facts)
        assert all(finding.fits and finding.remedy is None for finding in findings), findings
        assert {"JetPack", "TensorRT on JetPack", "TensorRT", "GPU for TensorRT"} <= {one.what for one in findings}


@pytest.mark.parametrize(
    ("jetpack", "words"),
    [("JetPack 5.1.4", "Python 3.8"), ("L4T 35.4.1", "TensorRT 8.5"), ("L4T 36.3.0", "no strongly typed networks")],
)
def test_an_old_jetpack_is_refused_with_the_way_out(jetpack: str, words: str) -> None:
    finding = find(MachineFacts(python="3.8.10", jetpack=jetpack, packages=ORT), "JetPack")
    assert finding.fits is False and words in finding.why
    assert "sdkmanager" in str(finding.remedy)


def test_a_newer_jetpack_is_unknown_not_wrong() -> None:
    finding = find(MachineFacts(python="3.12.3", jetpack="JetPack 8.0", packages=ORT), "JetPack")
    assert finding.fits is None and finding.remedy is None


def test_tensorrt_that_an_environment_cannot_see() -> None:
    facts = MachineFacts(python="3.10.12", jetpack="JetPack 6.2", isolated=True, packages=ORT)
    assert find(facts, "TensorRT on JetPack").remedy == "python3 -m venv --system-site-packages sbs"
    facts = MachineFacts(python="3.10.12", jetpack="JetPack 6.2", packages=ORT)
    assert "sudo apt install" in str(find(facts, "TensorRT on JetPack").remedy)
    other = MachineFacts(python="3.12.1", jetpack="JetPack 6.2", packages=ORT)
    assert str(find(other, "Python").remedy).startswith("/usr/bin/python3 -m venv --system-site-packages")


def test_tensorrt_from_pypi_on_a_jetson() -> None:
    facts = MachineFacts(python="3.10.12", jetpack="L4T 36.4.4", modules={"tensorrt": "11.4.0"}, packages=ORT, **ORIN)
    finding = find(facts, "TensorRT on JetPack")
    assert finding.fits is False and "10.3 or 10.7" in finding.why and "python3-libnvinfer" in str(finding.remedy)


def test_cuda_of_a_jetson() -> None:
    facts = MachineFacts(python="3.12.3", jetpack="JetPack 7.2.1", cuda="13.0", packages=ORT)
    assert find(facts, "CUDA on JetPack").fits is False


@pytest.mark.parametrize(
    ("version", "capability", "fits"), [("10.13.3", "7.5", True), ("11.4.0", "7.0", False), ("10.1.0", "7.0", True)]
)
def test_tensorrt_needs_a_chip(version: str, capability: str, fits: bool) -> None:
    facts = MachineFacts(python="3.11.7", compute_capability=capability, modules={"tensorrt": version}, packages=ORT)
    finding = find(facts, "GPU for TensorRT")
    assert finding.fits is fits and (finding.remedy is None) == fits
    if finding.remedy:
        words = finding.remedy.split()
        backend = backend_named(words[words.index("--backend") + 1], words[words.index("--provider") + 1])
        assert words[words.index("--engine") + 1] in backend.precisions, "`build` takes it"


@pytest.mark.parametrize(("version", "fits"), [("8.6.1", False), ("9.3.0", False), ("10.0.1", True), ("12.0.0", None)])
def test_major_versions_of_tensorrt(version: str, fits: bool | None) -> None:
    finding = find(MachineFacts(python="3.11.7", modules={"tensorrt": version}, packages=ORT), "TensorRT")
    assert finding.fits is fits
    assert (finding.remedy is not None) == (fits is False)


@pytest.mark.parametrize(
    ("capability", "fits"),
    [("7.5", False), ("8.0", True), ("8.7", False), ("8.9", True), ("9.0", False), ("12.1", True)],
)
def test_chips_of_tensorrt_rtx(capability: str, fits: bool) -> None:
    facts = MachineFacts(
        python="3.11.7", compute_capability=capability, modules={"tensorrt_rtx": "1.7.1"}, packages=ORT
    )
    finding = find(facts, "GPU for TensorRT-RTX")
    assert finding.fits is fits and (finding.remedy is None) == fits


def test_the_chips_are_those_that_are_built_for() -> None:
    assert tuple(f"SM{one.replace('.', '')}" for one in RTX_CAPABILITIES) == RTX_COMPUTE_CAPABILITIES


def test_tensorrt_rtx_on_arm() -> None:
    finding = find(
        MachineFacts(python="3.12.3", modules={"tensorrt_rtx": "1.7.1"}, packages=ORT, **ORIN), "TensorRT-RTX"
    )
    assert finding.fits is False and finding.remedy == "use --backend tensorrt"


@pytest.mark.parametrize(
    ("package", "driver", "fits"),
    [("tensorrt-cu12", "535.183.01", True), ("tensorrt-cu13", "570.86", False), ("tensorrt-cu13", "580.95.05", True)],
)
def test_drivers(package: str, driver: str, fits: bool) -> None:
    facts = MachineFacts(
        python="3.11.7", driver=driver, modules={"tensorrt": "11.4.0"}, packages={package: "11.4.0"} | ORT
    )
    finding = find(facts, "driver for tensorrt")
    assert finding.fits is fits
    assert fits or ("nvidia-driver-580" in str(finding.remedy) and "tensorrt-cu12" in str(finding.remedy))


def test_cuda_python_of_a_newer_cuda_than_the_driver() -> None:
    facts = MachineFacts(python="3.11.7", cuda="12.8", packages={"cuda-bindings": "13.5.0"} | ORT)
    assert find(facts, "cuda-python").remedy == "pip install 'cuda-python==12.*'"
    assert find(
        MachineFacts(python="3.11.7", cuda="13.0", packages={"cuda-bindings": "12.9.4"} | ORT), "cuda-python"
    ).fits


def test_packages_of_onnx_runtime() -> None:
    one = find(MachineFacts(python="3.11.7", packages=ORT), "ONNX Runtime")
    assert one.fits and one.found == "onnxruntime 1.32.0"
    both = find(MachineFacts(python="3.11.7", packages=ORT | {"onnxruntime-gpu": "1.32.0"}), "ONNX Runtime")
    assert both.fits is False and "uninstall -y onnxruntime onnxruntime-gpu" in str(both.remedy)
    none = find(MachineFacts(python="3.11.7"), "ONNX Runtime")
    assert none.fits is False and none.remedy == "pip install onnxruntime"


def test_every_line_is_found_by_its_own_names() -> None:
    for row in JETPACKS:
        assert jetpack_of(f"JetPack {row.release}") is row
        for release in row.l4t:
            assert jetpack_of(f"L4T {release}") is row


@given(st.text(max_size=12), st.text(max_size=12), st.text(max_size=12))
def test_no_version_is_too_odd(jetpack: str, python: str, tensorrt: str) -> None:
    facts = MachineFacts(
        python=python, jetpack=jetpack, cuda=python, modules={"tensorrt": tensorrt, "tensorrt_rtx": tensorrt}
    )
    for finding in examine_versions(facts):
        assert finding.why and (finding.fits is not True or finding.remedy is None)


def test_doctor_looks_at_this_machine() -> None:
    found = doctor.examine()
    assert {"what": "ONNX Runtime", "fits": True}.items() <= found["versions"][-1].items()


def test_environments_that_do_not_see_the_system(tmp_path: Path) -> None:
    assert not doctor._isolated(tmp_path), "no virtual environment"
    for value, isolated in (("false", True), ("true", False)):
        (tmp_path / "pyvenv.cfg").write_text(f"home = /usr/bin\ninclude-system-site-packages = {value}\n")
        assert doctor._isolated(tmp_path) is isolated
