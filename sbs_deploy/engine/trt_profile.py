"""Times of an engine's layers, as TensorRT's profiler tells them, with the ONNX nodes that each executes."""

import json
import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple

from sbs_deploy.engine.base import NodeTime

_ONNX_NODE = re.compile(r"\[ONNX Layer: ([^\]\x1e\x1f]*)\]")
"""In a layer's metadata, one for each ONNX node; \\x1e and \\x1f stand between them."""


def recording_profiler(trt: ModuleType) -> Any:
    """An IProfiler whose `totals_ms` holds, by layer in order of execution, the sum of its times."""

    class RecordingProfiler(trt.IProfiler):  # type: ignore[misc, name-defined]  # the module is only known at run time
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.totals_ms: dict[str, float] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.totals_ms[layer_name] = self.totals_ms.get(layer_name, 0.0) + ms

    return RecordingProfiler()


class EngineLayer(NamedTuple):
    """What the engine inspector says of a layer."""

    kind: str = ""
    nodes: tuple[str, ...] = ()
    """Names of the ONNX nodes it executes."""


def layers_of_engine(trt: Any, engine: Any, context: Any) -> dict[str, EngineLayer]:
    """By name; engines that were not built with detailed verbosity do not tell.

    The inspector answers `{"Layers": [{"Name": …, "LayerType": …, "Metadata": "[ONNX Layer: NAME]…"}, …]}`, or plain
    names in the place of objects.
    """
    inspector = engine.create_engine_inspector()
    inspector.execution_context = context
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    document = json.loads(text, strict=False)  # the separators may stand in it as they are
    return {
        layer["Name"]: EngineLayer(
            kind=layer.get("LayerType", ""),
            nodes=tuple(dict.fromkeys(_ONNX_NODE.findall(layer.get("Metadata", "")))),
        )
        for layer in document.get("Layers", ())
        if isinstance(layer, dict)
    }


def node_times(totals_ms: Mapping[str, float], layers: Mapping[str, EngineLayer], runs: int) -> list[NodeTime]:
    """The profiler's sums over `runs`, as means, in order of execution."""
    unknown = EngineLayer()
    return [
        NodeTime(name=name, kind=(layer := layers.get(name, unknown)).kind, ms=total / runs, nodes=layer.nodes)
        for name, total in totals_ms.items()
    ]
