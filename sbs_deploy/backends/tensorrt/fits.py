"""Whether an engine of TensorRT fits this machine."""

import re
from collections.abc import Mapping
from typing import Any

from sbs_deploy.machine.hardware import Hardware

RTX_NEWEST = "SM120"
"""Engines of TensorRT-RTX for this chip run on newer ones as well (NVIDIA's support matrix)."""


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
