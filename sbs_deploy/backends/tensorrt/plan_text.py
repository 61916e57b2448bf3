"""Read precisions from the text in a TensorRT-RTX plan, without a GPU.

The format is not documented, so all functions return None if they do not recognise the text.

    tensor={ … name="conv1.weight" … type=int8 }
    corrltn={ name="conv1" output={"…" } input={"…" "…" } … layers="[ONNX Layer: conv1][ONNX Layer: …]" }
"""

import re
from dataclasses import dataclass

_TENSOR = re.compile(rb'\b(?:sub_)?tensor=\{[^{}]*(?:\{[^{}]*\}[^{}]*)*?name="([^"]*)"[^\n]*?\btype=(\w+)')
_MULTIPLY = re.compile(
    rb'\b(?:corrltn|deconvolution|fully_connected)=\{ name="([^"]*)" '
    rb'output=\{([^}]*)\} input=\{([^}]*)\}[^\n]*?layers="([^"]*)"'
)
_NAMES = re.compile(rb'"([^"]*)"')
_LAYERS = re.compile(r"\[ONNX Layer: ([^\]]*)\]")


@dataclass(frozen=True, kw_only=True)
class PlanConvolution:
    """One kernel of the plan that computes a convolution or matrix product."""

    name: str
    layers: tuple[str, ...]
    """Names of the ONNX nodes in the kernel."""
    input_type: str
    weight_type: str

    @property
    def low_precision(self) -> bool:
        """Whether both operands are INT8, or both FP8."""
        return self.input_type == self.weight_type and self.input_type in ("int8", "fp8_e4m3")


def plan_convolutions(plan: bytes) -> list[PlanConvolution] | None:
    """Convolutions and matrix products of a serialized plan, or None if its text is not recognised."""
    types = {match[1]: match[2].decode() for match in _TENSOR.finditer(plan)}
    found = []
    for match in _MULTIPLY.finditer(plan):
        inputs, outputs = _NAMES.findall(match[3]), _NAMES.findall(match[2])
        if len(inputs) < 2 or not outputs or any(name not in types for name in (*inputs[:2], outputs[0])):
            return None
        found.append(
            PlanConvolution(
                name=match[1].decode(errors="replace"),
                layers=tuple(_LAYERS.findall(match[4].decode(errors="replace"))),
                input_type=types[inputs[0]],
                weight_type=types[inputs[1]],
            )
        )
    return found or None


def low_precision_convolutions(plan: bytes, names: list[str]) -> list[str] | None:
    """The ONNX nodes among `names` whose kernels all have 8-bit operands; None if the plan cannot be read."""
    kernels = plan_convolutions(plan)
    if kernels is None:
        return None
    return [
        name
        for name in names
        if (own := [k for k in kernels if name in k.layers]) and all(k.low_precision for k in own)
    ]
