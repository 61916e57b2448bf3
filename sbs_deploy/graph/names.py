"""Names of tensors in all ONNX files of a run."""

import re

QUANTIZED_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators of the layers that the export quantizes; their second input holds the weights."""
_WEIGHTS = re.compile(r"(.+)\.weight(_fp16)?")


def call_name(layer: str, call: int) -> str:
    """The name of a layer's node: a layer that runs several times has a node for every call."""
    return f"{layer}:{call}" if call else layer


def called(node: str) -> str:
    """The layer of a node with such a name."""
    layer, _, call = node.rpartition(":")
    return layer if layer and call.isdecimal() else node


def layer_of(weights: str) -> str | None:
    """The plan's name of the layer with these weights: NAME.weight, and NAME.weight_fp16 after legalise/half.py."""
    named = _WEIGHTS.fullmatch(weights)
    return named[1] if named is not None else None


def owner_of(weights: str) -> str:
    """The layer's name by `layer_of`, or the weights' name if `layer_of` finds none."""
    return layer_of(weights) or weights.removesuffix("_fp16")
