"""The graph as ONNX Runtime optimized it: which layers run in integers, and times from the profiler.

The profiler writes a JSON trace; its events of category "Node" with names `NODE_kernel_time` hold the microseconds of
one kernel (onnxruntime.ai, "Profiling Tools"). The optimized graph has inputs and outputs of each node: fused nodes get
new names, but weights, biases and outputs mostly keep their names.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from sbs_deploy.backends.base import NodeTime

KERNEL = "_kernel_time"
INTEGER_KERNELS = ("QLinearConv", "QLinearMatMul", "QGemm", "MatMulIntegerToFloat")
"""Operators of ONNX Runtime that multiply integers."""
_APPENDED = re.compile(r"(_token_\d+|_s8_2_u8|_nchwc|_nhwc|_out\d+)+$")


def integer_layers(optimized: onnx.ModelProto, wanted: Mapping[str, str]) -> list[str]:
    """Names of the layers that an optimized graph runs in integers.

    ONNX Runtime keeps the name of the weights or of the node when it fuses nodes or changes their layout.

    Args:
        wanted: the initializer with the weights of every layer in question, by name.
    """
    kernels = [node for node in optimized.graph.node if node.op_type in INTEGER_KERNELS]
    names = {name for node in kernels for name in (node.name, own_name(node.name)) if name}
    read = Counter(name for node in kernels for name in {own_name(given) for given in node.input} | {*node.input})
    calls = Counter(wanted.values())  # a layer that runs several times has nodes with the same weights
    return [layer for layer, weights in wanted.items() if read[weights] >= calls[weights] or layer in names]


def own_name(name: str) -> str:
    """A node's or tensor's name without suffixes that ONNX Runtime adds to copies in another layout or type."""
    return _APPENDED.sub("", name)


def node_times_of(trace: Path, optimized: Path, skip: int) -> list[NodeTime]:
    """Median times of a trace, in order of execution.

    Args:
        trace: the file that `end_profiling` wrote.
        optimized: the graph of the session, from `optimized_model_filepath`.
        skip: number of uncounted inferences at the start.
    """

    graph = onnx.load(optimized, load_external_data=False).graph
    nodes = {node.name: node for node in graph.node}
    constants = {tensor.name for tensor in graph.initializer}
    events: dict[tuple[str, str, str], list[int]] = {}
    for event in json.loads(trace.read_text(encoding="utf-8")):  # our own file, and too long for `parse_json`
        if event.get("cat") == "Node" and event["name"].endswith(KERNEL):
            about = event["args"]
            key = event["name"].removesuffix(KERNEL), about["op_name"], about["node_index"]
            events.setdefault(key, []).append(event["dur"])
    return [
        NodeTime(
            name=name,
            kind=kind,
            ms=float(np.median(durations[skip:])) / 1e3,
            quickest_ms=min(durations[skip:], default=0) / 1e3,
            nodes=_plain([name]),
            tensors=_tensors(nodes.get(name), name, constants),
        )
        for (name, kind, _), durations in events.items()
    ]


def _tensors(node: Any, name: str, constants: set[str]) -> tuple[str, ...]:
    """Original names of a node's outputs and constants, and of a node in blocked layout, which is named after one."""
    if node is None:
        return _plain([name])
    return _plain([*node.output, *(one for one in node.input if one in constants), name])


def _plain(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(own_name(name) for name in names if name))
