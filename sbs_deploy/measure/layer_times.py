"""Assign times of an engine's nodes to the plan's layers, and the rest to categories.

A node of an engine executes several nodes of the model. It belongs to a layer of the plan if it executes the
convolution or matrix product with the weights `LAYER.weight`; all other nodes belong to a category.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Literal

import onnx

from sbs_deploy.backends.base import NodeTime
from sbs_deploy.graph.links import makers_of, stored_behind
from sbs_deploy.graph.names import QUANTIZED_OPS, layer_of
from sbs_train.contract.results import LayerTime

Category = Literal["layer", "reformat", "requantization", "elementwise", "pooling", "other"]

QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
CATEGORIES: dict[Category, tuple[str, ...]] = {
    "pooling": (
        *(
            "MaxPool",
            "AveragePool",
            "GlobalAveragePool",
            "GlobalMaxPool",
            "ReduceMean",
            "ReduceMax",
            "Pooling",
            "Reduce",
        ),
        *("AvgPool", "QLinearAveragePool", "QLinearGlobalAveragePool", "QLinearReduceMean", "AdaptivePooling"),
    ),
    "elementwise": (
        *("Add", "Sub", "Mul", "Div", "Relu", "PRelu", "LeakyRelu", "Clip", "Clamp", "Sigmoid", "HardSigmoid", "Tanh"),
        *("HardSwish", "HSwish", "Swish", "Mish", "Elu", "Gelu", "Erf", "Sum", "Max", "Min", "Sqrt", "Pow", "Exp"),
        *("QLinearAdd", "QLinearMul", "QLinearSigmoid", "QLinearLeakyRelu", "QuickGelu", "Eltwise", "Subgraph"),
        *("PointWise", "PointWiseV2", "ElementWise", "Activation"),
    ),
    "requantization": (*QUANTIZERS, "FakeQuantize", "Quantize", "Dequantize", "Scale"),
    "reformat": (
        *("Reorder", "ReorderInput", "ReorderOutput", "Transpose", "Reformat", "Convert", "Cast", "Shuffle", "NoOp"),
        *("MemcpyFromHost", "MemcpyToHost", "Copy"),
    ),
}
"""Types of nodes by category, in ONNX' and the engines' names; a fused node has its first matching category."""
_KIND = {kind.lower(): category for category, kinds in CATEGORIES.items() for kind in kinds}
_COMPUTES = re.compile(r"conv|gemm|matmul|matrix_?multiply|fullyconnected|innerproduct", re.IGNORECASE)
_PART = re.compile(r"\.(input|weight|bias)_(quantized|clipped|dequantized)$")
"""Names of a layer's quantizers in exported graphs (export/qdq.py)."""


def layer_times(times: Sequence[NodeTime], model: onnx.ModelProto, layers: Iterable[str]) -> list[LayerTime]:
    """Times by layer and category, the layers in the plan's order, then the rest by time.

    Args:
        times: times of the engine's nodes.
        model: the graph that the engine was made from.
        layers: names of the plan's layers.
    """
    order = list(layers)
    graph = _Graph(model, order)
    found: dict[tuple[str | None, Category], list[tuple[NodeTime, tuple[str, ...]]]] = {}
    for time in times:
        category, owners = graph.classify(time)
        found.setdefault((owners[0] if owners else None, category), []).append((time, owners[1:]))
    total = sum(time.ms for time in times) or 1.0
    rows = [
        LayerTime(
            layer=layer,
            category=category,
            ms=(ms := sum(time.ms for time, _ in parts)),
            share=ms / total,
            nodes=tuple(time.name for time, _ in parts),
            fused=tuple(dict.fromkeys(name for _, fused in parts for name in fused)),
        )
        for (layer, category), parts in found.items()
    ]
    place = {name: i for i, name in enumerate(order)}
    return sorted(rows, key=lambda row: (row.category != "layer", place.get(row.layer or "", len(place)), -row.ms))


class _Graph:
    """Finds the model's nodes that a node of the engine executes."""

    def __init__(self, model: onnx.ModelProto, layers: Sequence[str]) -> None:
        self.nodes = {node.name: node for node in model.graph.node if node.name}
        self.makers = makers_of(model)
        self.layers = set(layers)
        self.constants = {tensor.name for tensor in model.graph.initializer}
        self.readers: dict[str, onnx.NodeProto] = {}
        for node in model.graph.node:
            if node.op_type in QUANTIZED_OPS:
                for name in filter(None, map(self._constant, node.input[1:])):
                    self.readers.setdefault(name, node)

    def classify(self, time: NodeTime) -> tuple[Category, tuple[str, ...]]:
        """(category, layers of the plan) of an engine's node, layers in the engine's order."""
        computes = _COMPUTES.search(time.kind) is not None
        named = [self.nodes[name] for name in time.nodes if name in self.nodes]
        written = [self.makers[name] for name in time.tensors if name in self.makers]
        read = [self.readers[name] for name in time.tensors if name in self.readers] if computes else []
        nodes = list({id(node): node for node in (*named, *written, *read)}.values())
        kernels = [node for node in nodes if node.op_type in QUANTIZED_OPS]
        if computes and not kernels:
            kernels = [node for node in map(self._kernel_before, nodes) if node is not None]
        if kernels:
            owners = tuple(dict.fromkeys(filter(None, map(self._layer, kernels))))
            return ("layer", owners) if owners else ("other", ())
        category = self._category(time.kind, nodes)
        parts = (_PART.sub("", name) for name in time.nodes if _PART.search(name))
        owners = tuple(dict.fromkeys(name for name in parts if name in self.layers))
        return category, owners[:1] if category == "requantization" else ()

    @staticmethod
    def _category(kind: str, nodes: Sequence[onnx.NodeProto]) -> Category:
        kinds = {_kind_of(node) for node in nodes}
        own = _KIND.get(kind.lower())
        if own == "reformat" and kind not in kinds:
            return "reformat"  # a node that the engine added
        present = {_KIND[one.lower()] for one in kinds - {"Transpose"} if one.lower() in _KIND}
        known = present or ({own} if own is not None and not nodes else set())
        return next((category for category in CATEGORIES if category in known), "other")

    def _layer(self, node: onnx.NodeProto) -> str | None:
        """The plan's name of a convolution or matrix product, by the name of the node or of its weights."""
        if node.name in self.layers:
            return node.name
        named = layer_of(self._constant(node.input[1]) or "")
        return named if named in self.layers else None

    def _constant(self, name: str) -> str | None:
        """The initializer behind an input, through what dequantizes, converts or reorders it."""
        stored = stored_behind(name, self.makers)
        return stored if stored in self.constants else None

    def _kernel_before(self, node: onnx.NodeProto | None) -> onnx.NodeProto | None:
        """The node that computes the input of a fused activation or quantizer; None if it has several inputs."""
        while node is not None and node.op_type not in QUANTIZED_OPS:
            data = [name for name in node.input if name in self.makers]
            node = self.makers[data[0]] if len(data) == 1 else None
        return node


def _kind_of(node: onnx.NodeProto) -> str:
    """The operator; a Clip that the export added to a quantizer counts as the quantizer."""
    return QUANTIZERS[0] if node.op_type == "Clip" and node.name.endswith("_clipped") else node.op_type
