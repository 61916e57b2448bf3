"""Times of an engine's layers from TensorRT's profiler, with the ONNX nodes of each layer."""

import json
import re
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from sbs_deploy.backends.base import NodeTime

_ONNX_NODE = re.compile(r"\[ONNX Layer: ([^\]\x1e\x1f]*)\]")
"""Marks of ONNX nodes in a layer's metadata, separated by \\x1e and \\x1f."""


def recording_profiler(trt: ModuleType) -> Any:
    """An IProfiler that collects all times by layer in `times_ms`, in order of execution."""

    class RecordingProfiler(trt.IProfiler):  # type: ignore[misc, name-defined]  # the module is only known at run time
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.times_ms: dict[str, list[float]] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.times_ms.setdefault(layer_name, []).append(ms)

    return RecordingProfiler()


class EngineLayer(NamedTuple):
    """A layer by the engine inspector."""

    kind: str = ""
    nodes: tuple[str, ...] = ()
    """Names of the layer's ONNX nodes."""


def layers_of_engine(trt: Any, engine: Any, context: Any) -> dict[str, EngineLayer]:
    """Layers by name; empty for engines that were built without detailed verbosity.

    The inspector returns `{"Layers": [{"Name": …, "LayerType": …, "Metadata": "[ONNX Layer: NAME]…"}, …]}`, or plain
    names in place of objects.
    """
    inspector = engine.create_engine_inspector()
    inspector.execution_context = context
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    document = json.loads(text, strict=False)  # the separators may be unescaped
    return {
        layer["Name"]: EngineLayer(
            kind=layer.get("LayerType", ""),
            nodes=tuple(dict.fromkeys(_ONNX_NODE.findall(layer.get("Metadata", "")))),
        )
        for layer in document.get("Layers", ())
        if isinstance(layer, dict)
    }


def node_times(times_ms: Mapping[str, Sequence[float]], layers: Mapping[str, EngineLayer], runs: int) -> list[NodeTime]:
    """Medians of the profiler's times over `runs`, in order of execution; a layer may run several times per run."""
    unknown = EngineLayer()
    return [
        NodeTime(
            name=name,
            kind=(layer := layers.get(name, unknown)).kind,
            ms=float(np.median(times)) * len(times) / runs,
            quickest_ms=float(np.min(times)) * len(times) / runs,
            nodes=layer.nodes,
        )
        for name, times in times_ms.items()
    ]
