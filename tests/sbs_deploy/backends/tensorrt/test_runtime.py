"""Which engines fit which machine."""

from typing import Any

import pytest

from sbs_deploy.backends.tensorrt.runtime import engine_problem
from sbs_deploy.machine.hardware import Hardware

ADA = Hardware(gpu="NVIDIA RTX 4090", compute_capability="8.9", driver="580.1", cuda="13.0")


def problem(
    details: dict[str, Any], *, built: str = "10.13.3", here: Hardware = ADA, version: str = "10.13.3"
) -> str | None:
    return engine_problem(details, {"tensorrt": built}, "tensorrt", version, here)


def test_the_machine_it_was_built_on() -> None:
    assert problem({"hardware": ADA.as_json()}) is None
    assert problem({}) is None, "what is not known is not held against an engine"


def test_another_gpu() -> None:
    other = Hardware(gpu="NVIDIA L4", compute_capability="8.9")
    details: dict[str, Any] = {"hardware": ADA.as_json()}
    assert problem(details, here=other) == "it was built on NVIDIA RTX 4090, here is NVIDIA L4"
    same = {**details, "settings": {"hardware_compatibility": "same-compute-capability"}}
    assert problem(same, here=other) is None
    ampere = Hardware(gpu="NVIDIA A10", compute_capability="8.6")
    assert "compute capability 8.9, here is 8.6" in str(problem(same, here=ampere))
    assert problem({**details, "settings": {"hardware_compatibility": "ampere-plus"}}, here=ampere) is None


def test_another_version() -> None:
    assert problem({}, version="11.4.0") == "it was built by tensorrt 10.13.3, here is 11.4.0"
    compatible = {"settings": {"version_compatible": True}}
    assert problem(compatible, version="10.16.0") is None
    assert problem(compatible, version="11.4.0") is not None, "not across major versions"
    assert problem(compatible, version="10.9.0") is not None, "an older version never loads it"


@pytest.mark.parametrize(
    ("capability", "fits"), [("8.0", False), ("8.9", True), ("12.0", True), ("12.1", True), ("9.0", False)]
)
def test_chips_of_an_rtx_engine(capability: str, fits: bool) -> None:
    details = {"compute_capabilities": ["SM86", "SM89", "SM120"]}
    here = Hardware(gpu="x", compute_capability=capability)
    assert (problem(details, here=here) is None) == fits
