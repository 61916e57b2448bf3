"""Tables of versions that belong together, and their comparison with this machine.

Comments give the source of each version. Versions newer than the tables are reported as unknown, never as wrong.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from sbs_deploy.machine.hardware import Hardware


@dataclass(frozen=True, kw_only=True)
class JetPack:
    """Versions in one release line of JetPack."""

    release: str
    l4t: tuple[str, ...]
    """Releases of Jetson Linux, such as 36.4."""
    tensorrt: tuple[str, ...]
    """Release lines of TensorRT that run on this JetPack; the first is in its image."""
    cuda: str
    python: str
    """Version of the system's Python, for which TensorRT's bindings are built."""
    refused: str = ""
    """Why nothing can be built for this JetPack; empty if it can."""


UPGRADE = "flash JetPack 6.2 or newer with NVIDIA's `sdkmanager` (Xavier modules end at JetPack 5)"
JETPACKS = (
    # https://developer.nvidia.com/embedded/jetpack-sdk-502
    JetPack(release="5.0", l4t=("35.1",), tensorrt=("8.4",), cuda="11.4", python="3.8", refused="Python 3.8"),
    # https://developer.nvidia.com/embedded/jetpack-sdk-51, -514
    JetPack(
        release="5.1",
        l4t=("35.2", "35.3", "35.4", "35.5", "35.6"),
        tensorrt=("8.5",),
        cuda="11.4",
        python="3.8",
        refused="Python 3.8 and TensorRT 8.5 (SBS needs 3.10 and 10)",
    ),
    # https://docs.nvidia.com/jetson/archives/jetpack-archived/jetpack-60/
    JetPack(
        release="6.0",
        l4t=("36.2", "36.3"),
        tensorrt=("8.6",),
        cuda="12.2",
        python="3.10",
        refused="TensorRT 8.6, which has no strongly typed networks (SBS needs 10)",
    ),
    # https://docs.pytorch.org/TensorRT/getting_started/jetpack.html (6.1, 6.2); TensorRT 10.7 for JetPack:
    # https://docs.nvidia.com/deeplearning/tensorrt/latest/getting-started/support-matrix-10/10.10.0.html
    JetPack(release="6.1", l4t=("36.4.0",), tensorrt=("10.3", "10.7"), cuda="12.6", python="3.10"),
    JetPack(release="6.2", l4t=("36.4", "36.5"), tensorrt=("10.3", "10.7"), cuda="12.6", python="3.10"),
    # https://developer.nvidia.com/embedded/jetpack/downloads/archive-7.0 and archive-7.1
    JetPack(release="7.0", l4t=("38.2",), tensorrt=("10.13",), cuda="13.0", python="3.12"),
    JetPack(release="7.1", l4t=("38.4",), tensorrt=("10.13",), cuda="13.0", python="3.12"),
    # https://nvidia.github.io/TensorRT-Edge-LLM/0.11.1/user_guide/getting_started/support-matrix.html (CUDA);
    # TensorRT 10.16 as an Orin Nano with 7.2.1 reports it (dpkg); 11.4 from 7.2.2 on:
    # https://docs.nvidia.com/deeplearning/tensorrt/11.4.1/api/migration/tensorrt-10x-to-11x-jetson.html
    JetPack(release="7.2", l4t=("39.2",), tensorrt=("10.16", "11.4"), cuda="13.2", python="3.12"),
)

TENSORRT_CAPABILITY = {
    # https://docs.nvidia.com/deeplearning/tensorrt/archives/tensorrt-1010/support-matrix/index.html
    10: "7.0",
    # https://docs.nvidia.com/deeplearning/tensorrt/11.4.0/installing-tensorrt/prerequisites.html
    11: "7.5",
}
"""Oldest compute capability by TensorRT's major version."""

# https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/getting-started/support-matrix-1/1.5.html, without 7.5, whose
# presence silently turns INT8 convolutions into float, and with 8.0, which its builder takes
RTX_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0")
"""Compute capabilities that engines of TensorRT-RTX are built for; newer GPUs run engines of the last."""

DRIVERS = {
    # https://docs.nvidia.com/deeplearning/tensorrt/11.4.0/installing-tensorrt/prerequisites.html; CUDA's release notes
    # (https://docs.nvidia.com/cuda/cuda-toolkit-release-notes/) for TensorRT 10.
    ("tensorrt", 10, "cu12"): "525",
    ("tensorrt", 11, "cu12"): "535",
    ("tensorrt", 10, "cu13"): "580",
    ("tensorrt", 11, "cu13"): "580",
    ("tensorrt_rtx", 1, "cu13"): "580",
}
"""Oldest driver on Linux, by module, major version and CUDA of the packages."""

DISTRIBUTIONS = (
    *("tensorrt", "tensorrt-cu12", "tensorrt-cu13", "tensorrt-rtx", "tensorrt-rtx-cu12", "tensorrt-rtx-cu13"),
    *("onnxruntime", "onnxruntime-gpu", "cuda-bindings"),
)
"""Packages in the tables."""

VENV = "python3 -m venv --system-site-packages sbs"


@dataclass(frozen=True, kw_only=True)
class MachineFacts(Hardware):
    """Hardware and versions of a machine; None or missing for parts that the machine lacks."""

    python: str
    architecture: str = "x86_64"
    isolated: bool = False
    """Whether Python runs in a virtual environment without the system's packages."""
    modules: Mapping[str, str] = field(default_factory=dict)
    """Versions of importable modules."""
    packages: Mapping[str, str] = field(default_factory=dict)
    """Versions of the installed distributions."""


@dataclass(frozen=True, kw_only=True)
class VersionCheck:
    """Result of one comparison of versions."""

    what: str
    found: str
    fits: bool | None
    """Whether the versions fit; None if the tables do not know."""
    why: str
    remedy: str | None = None
    """Command or advice for a version that does not fit."""


def examine_versions(facts: MachineFacts) -> list[VersionCheck]:
    """All comparisons that apply to this machine."""
    return [*_jetson(facts), *_tensorrt(facts), *_tensorrt_rtx(facts), *_bindings(facts), *_onnxruntime(facts)]


def jetpack_of(text: str) -> JetPack | None:
    """The release line of a version such as `JetPack 6.2.1+b38` or `L4T 36.4.4`; None if unknown."""
    kind, _, version = text.partition(" ")
    if kind == "JetPack":
        return next((row for row in JETPACKS if _starts(version, row.release)), None)
    return next((row for row in JETPACKS if any(_starts(version, line) for line in row.l4t)), None)


def _jetson(facts: MachineFacts) -> Iterator[VersionCheck]:
    if facts.jetpack is None:
        return
    row = jetpack_of(facts.jetpack)
    if row is None:
        yield VersionCheck(what="JetPack", found=facts.jetpack, fits=None, why="this release is not in SBS's table")
        return
    if row.refused:
        why = f"JetPack {row.release} has {row.refused}"
        yield VersionCheck(what="JetPack", found=facts.jetpack, fits=False, why=why, remedy=UPGRADE)
        return
    ships = f"JetPack {row.release} ships TensorRT {row.tensorrt[0]}, CUDA {row.cuda}, Python {row.python}"
    yield VersionCheck(what="JetPack", found=facts.jetpack, fits=True, why=ships)
    if not _starts(facts.python, row.python):
        why = f"TensorRT's bindings on JetPack {row.release} are for the system's Python {row.python}"
        yield VersionCheck(what="Python", found=facts.python, fits=False, why=why, remedy=f"/usr/bin/{VENV}")
    tensorrt = facts.modules.get("tensorrt")
    if tensorrt is None:
        yield _missing_on_jetson(facts)
    else:
        fits = any(_starts(tensorrt, line) for line in row.tensorrt)
        why = f"JetPack {row.release} runs TensorRT {' or '.join(row.tensorrt)}"
        remedy = None if fits else "pip uninstall -y tensorrt; sudo apt install --reinstall python3-libnvinfer"
        yield VersionCheck(what="TensorRT on JetPack", found=tensorrt, fits=fits, why=why, remedy=remedy)
    if facts.cuda is not None:
        fits = version_numbers(facts.cuda) >= version_numbers(row.cuda)
        why = f"JetPack {row.release} is built for CUDA {row.cuda}"
        remedy = None if fits else "sudo apt update && sudo apt install --reinstall nvidia-jetpack"
        yield VersionCheck(what="CUDA on JetPack", found=facts.cuda, fits=fits, why=why, remedy=remedy)


def _missing_on_jetson(facts: MachineFacts) -> VersionCheck:
    if facts.isolated:
        why = "it comes with JetPack for the system's Python, which this virtual environment does not see"
        return VersionCheck(what="TensorRT on JetPack", found="none", fits=False, why=why, remedy=VENV)
    why, remedy = "it comes with JetPack, not from PyPI", "sudo apt install nvidia-jetpack python3-libnvinfer"
    return VersionCheck(what="TensorRT on JetPack", found="none", fits=False, why=why, remedy=remedy)


def _tensorrt(facts: MachineFacts) -> Iterator[VersionCheck]:
    version = facts.modules.get("tensorrt")
    if version is None:
        return
    major = version_numbers(version)[0]
    oldest = TENSORRT_CAPABILITY.get(major)
    if oldest is None:
        newer = major > max(TENSORRT_CAPABILITY)
        install = "pip install 'tensorrt>=10,<12' --extra-index-url https://pypi.nvidia.com"
        why = "SBS knows TensorRT 10 and 11" + ("" if newer else ", which have strongly typed networks")
        remedy = None if newer else install
        yield VersionCheck(what="TensorRT", found=version, fits=None if newer else False, why=why, remedy=remedy)
        return
    yield VersionCheck(what="TensorRT", found=version, fits=True, why="SBS knows TensorRT 10 and 11")
    if facts.compute_capability is not None:
        fits = version_numbers(facts.compute_capability) >= version_numbers(oldest)
        why = f"TensorRT {major} runs on compute capability {oldest} and newer"
        remedy = None if fits else "sbs-deploy build --engine fp16 --backend onnxruntime --provider cuda"
        yield _capability("TensorRT", facts, fits, why, remedy)
    if facts.jetpack is None:
        yield from _driver("tensorrt", version, facts)


def _tensorrt_rtx(facts: MachineFacts) -> Iterator[VersionCheck]:
    version = facts.modules.get("tensorrt_rtx")
    if version is None:
        return
    if facts.architecture not in ("x86_64", "AMD64"):
        why = "TensorRT-RTX is for x86-64 only"
        yield VersionCheck(
            what="TensorRT-RTX", found=facts.architecture, fits=False, why=why, remedy="use --backend tensorrt"
        )
    elif facts.compute_capability is not None:
        here, newest = facts.compute_capability, RTX_CAPABILITIES[-1]
        fits = here in RTX_CAPABILITIES or version_numbers(here) >= version_numbers(newest)
        why = f"engines of TensorRT-RTX are built for compute capability {', '.join(RTX_CAPABILITIES)} and newer"
        yield _capability("TensorRT-RTX", facts, fits, why, None if fits else "use --backend tensorrt")
    yield from _driver("tensorrt_rtx", version, facts)


def _capability(what: str, facts: MachineFacts, fits: bool, why: str, remedy: str | None) -> VersionCheck:
    found = f"compute capability {facts.compute_capability}"
    return VersionCheck(what=f"GPU for {what}", found=found, fits=fits, why=why, remedy=remedy)


def _driver(module: str, version: str, facts: MachineFacts) -> Iterator[VersionCheck]:
    """Compare the driver with the CUDA version that a module's packages were built for."""
    name = module.replace("_", "-")
    builds = [build for build in ("cu13", "cu12") if f"{name}-{build}" in facts.packages]
    oldest = DRIVERS.get((module, version_numbers(version)[0], builds[0])) if builds else None
    if facts.driver is None or oldest is None:
        return
    fits = version_numbers(facts.driver) >= version_numbers(oldest)
    why = f"{name}-{builds[0]} {version} needs driver {oldest} or newer"
    remedy = None
    if not fits:
        older = builds[0] == "cu13" and (module, version_numbers(version)[0], "cu12") in DRIVERS
        swap = f"pip uninstall -y {name} {name}-cu13; pip install {name}-cu12"
        remedy = f"sudo apt install nvidia-driver-{oldest}" + (f", or {swap}" if older else "")
    yield VersionCheck(what=f"driver for {name}", found=facts.driver, fits=fits, why=why, remedy=remedy)


def _bindings(facts: MachineFacts) -> Iterator[VersionCheck]:
    """Compare cuda-python with the driver: their major versions of CUDA must fit, minor versions may differ."""
    # https://nvidia.github.io/cuda-python/cuda-bindings/latest/support.html
    version = facts.packages.get("cuda-bindings")
    if version is None or facts.cuda is None:
        return
    ours, theirs = version_numbers(version)[0], version_numbers(facts.cuda)[0]
    why = f"the driver serves CUDA {facts.cuda}"
    remedy = None if ours <= theirs else f"pip install 'cuda-python=={theirs}.*'"
    yield VersionCheck(what="cuda-python", found=version, fits=ours <= theirs, why=why, remedy=remedy)


def _onnxruntime(facts: MachineFacts) -> Iterator[VersionCheck]:
    # https://onnxruntime.ai/docs/install: one package an environment
    present = [name for name in ("onnxruntime", "onnxruntime-gpu") if name in facts.packages]
    found = " and ".join(f"{name} {facts.packages[name]}" for name in present) or "none"
    gpu = facts.compute_capability is not None
    if len(present) == 2:
        remedy = f"pip uninstall -y onnxruntime onnxruntime-gpu; pip install {'onnxruntime-gpu' if gpu else present[0]}"
        why = "each overwrites files of the other: only one may be installed"
        yield VersionCheck(what="ONNX Runtime", found=found, fits=False, why=why, remedy=remedy)
    elif not present:
        why = "validate and the CPU engine need it"
        yield VersionCheck(what="ONNX Runtime", found=found, fits=False, why=why, remedy="pip install onnxruntime")
    else:
        yield VersionCheck(what="ONNX Runtime", found=found, fits=True, why="exactly one of its packages is installed")


def _starts(version: str, line: str) -> bool:
    """Whether 10.3.0.26 belongs to the release line 10.3; 10.13 does not belong to 10.1."""
    wanted = version_numbers(line)
    return version_numbers(version)[: len(wanted)] == wanted


def version_numbers(version: str) -> tuple[int, ...]:
    """Numbers of a version, such as (10, 3, 0) for 10.3.0+b1."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else (0,)
