"""Name the device, and join the parts of gpu.sh into one JSON file. Standard library and torch alone."""

import argparse
import datetime
import json
import platform
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = {"torch", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt-rtx", "pycuda", "cuda-bindings", "numpy"}
PARTS = ("tests", "train", "run", "onnxruntime", "tensorrt_rtx")
NO_TESTS_COLLECTED = 5
LOG_LINES = 20


def main() -> int:
    """`device` writes what the GPU is; `join` writes the result and returns 1 unless every part succeeded."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("device", "join"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", type=Path)
    arguments = parser.parse_args()
    if arguments.action == "device":
        arguments.out.write_text(json.dumps(device()))
        return 0
    result, passed = join(arguments.parts)
    name = re.sub(r"[^A-Za-z0-9]+", "-", result["device"].get("name", "no-gpu")).strip("-").lower()
    path = arguments.out / f"gpu-{name}-{result['created'][:10]}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(path)
    print(json.dumps({"path": str(path), "passed": passed}))
    return 0 if passed else 1


def device() -> dict[str, Any]:
    """The GPU as torch sees it; exits 1 with the reason where it sees none."""
    import torch

    if not torch.cuda.is_available():
        sys.exit("torch sees no GPU")
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
    }


def join(parts: Path) -> tuple[dict[str, Any], bool]:
    """The whole result, and whether every part succeeded (no tests marked gpu counts as success)."""
    here = (parts / "device.json").is_file()
    result: dict[str, Any] = {
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": json.loads((parts / "device.json").read_text()) if here else {"error": log(parts, "device")},
        "python": platform.python_version(),
        "versions": {name: one.version for one in metadata.distributions() if (name := dashed(one.name)) in PACKAGES},
    }
    passed = here
    for name in PARTS if here else ():
        code = int((parts / f"{name}.rc").read_text())
        output = parts / f"{name}.json"
        result[name] = {"exit_code": code, **(json.loads(output.read_text()) if output.is_file() else {})}
        if code != 0 or name in ("tests", "run"):
            result[name]["log"] = log(parts, name)
        passed &= code == 0 or (name == "tests" and code == NO_TESTS_COLLECTED)
    return result, passed


def dashed(name: str) -> str:
    """A package's name as PyPI shows it."""
    return name.lower().replace("_", "-")


def log(parts: Path, name: str) -> str:
    """Last lines that a part printed."""
    return "\n".join((parts / f"{name}.log").read_text(errors="replace").splitlines()[-LOG_LINES:])


if __name__ == "__main__":
    raise SystemExit(main())
