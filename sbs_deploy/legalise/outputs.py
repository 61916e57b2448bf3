"""Q/DQ behind layers and between them, for backends that compute in integers only between quantized tensors.

ONNX Runtime runs a convolution in integers only if one QuantizeLinear, perhaps behind a Relu or Clip, is all that reads
its result. A plan quantizes what layers and additions read, so the results of layers before SiLU, SE, Concat, Split or
pooling stay in float, and so do these layers. Here their results get the ranges that the plan holds, and, if asked for,
what lies between quantized tensors gets ranges that follow from those, without data. Codes have 8 bits, with a
zero-point of their own.
"""

from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir

from sbs_deploy.export.codes import Codes
from sbs_deploy.graph.edit import clip_before, constant
from sbs_deploy.graph.links import MOVES
from sbs_deploy.graph.names import called
from sbs_deploy.graph.tensor import DEQUANTIZE, QUANTIZE
from sbs_train.contract.grid import Quantizer, range_quantizer

Outputs = Literal["none", "layers", "all"]
Range = tuple[float, float]

LEAST = {"Sigmoid": -0.2785, "HardSigmoid": -0.375, "HardSwish": -0.375, "Gelu": -0.17}
"""Least values of x times the function, or of the function, which for positive x is at most x."""
GATES = ("Sigmoid", "HardSigmoid", "Softmax")
"""Operators whose results lie between 0 and 1."""
CHOOSES = (*MOVES, "MaxPool", "Slice", "Split")
"""Operators whose results are values of their first input."""
ON_CODES = (*CHOOSES, "Resize", "AveragePool", "GlobalAveragePool")
"""Operators of KEEPS that can compute on codes."""
KEEPS = (*ON_CODES, "ReduceMean")
"""Operators whose results lie in the range of their first input, which has zero in it."""
JOINS = ("Mul", "Add", "Concat")
TINY = 1e-3
"""Part of a step that rounding explains."""
EIGHT_BITS = 120
"""Grids of 8 bits have at least as many steps from zero to their end, grids of fewer bits less."""


def with_quantized_outputs(model: onnx.ModelProto, codes: Codes, outputs: Outputs) -> tuple[onnx.ModelProto, int]:
    """A copy of a Q/DQ graph of the dialect ort with more pairs, and how many there are.

    Args:
        codes: the ranges of the outputs of layers; layers without one keep theirs in float.
        outputs: layers, for what lies behind layers and their Relu or Clip; all, also for what can be computed in
            integers between quantized tensors; none changes nothing.
    """
    graph = ir.from_proto(model)
    made = _Outputs(graph.graph, codes).insert(outputs)
    graph.graph.sort()
    proto = ir.to_proto(graph)
    onnx.checker.check_model(proto, full_check=True)
    return proto, made


class _Outputs:
    def __init__(self, graph: ir.Graph, codes: Codes) -> None:
        self.graph = graph
        # A MatMul of integers writes floats, which a bias is added to, and needs no quantizer behind it.
        made = {called(node.name or "") for node in graph if node.op_type != "MatMul"}
        self.layers = {
            name: _range_of(layer.output)
            for name, layer in codes.layers.items()
            if layer.output is not None and name in made
        }
        self.sums = {name: _range_of(quantizer) for name, quantizer in codes.sums.items()}
        self.known: dict[ir.Value, Range | None] = {}
        self.made = 0

    def insert(self, outputs: Outputs) -> int:
        for node in list(self.graph):
            if outputs == "none" or not node.outputs or node.op_type in (QUANTIZE, DEQUANTIZE):
                continue
            behind_layer = self._behind_layer(node)
            if behind_layer or (outputs == "all" and self._between_codes(node)):
                for y in node.outputs:
                    self._settle(y, behind_layer)
        return self.made

    def _behind_layer(self, node: ir.Node) -> bool:
        """Whether a node is a quantized layer, or the Relu or Clip that alone reads one: both become one kernel."""
        if node.op_type in ("Relu", "Clip") and node.inputs[0] is not None:
            before = node.inputs[0].producer()
            return before is not None and called(before.name or "") in self.layers and len(node.inputs[0].uses()) == 1
        return called(node.name or "") in self.layers and not _fused_activation(node.outputs[0])

    def _between_codes(self, node: ir.Node) -> bool:
        """Whether a node reads dequantized tensors alone, and has an integer form, or helps one that has."""
        if node.op_type not in (*LEAST, *GATES, *ON_CODES, *JOINS):
            return False
        inputs = node.inputs if node.op_type in JOINS else node.inputs[:1]
        return all(x is not None and _dequantized(x) for x in inputs)

    def _settle(self, y: ir.Value, behind_layer: bool) -> None:
        """Let one pair, an existing one if it has 8 bits, quantize `y` for all that reads it."""
        readers = [use.node for use in y.uses()]
        quantizers = [node for node in readers if node.op_type == QUANTIZE]
        if y.is_graph_output() or not readers or readers == quantizers[:1]:
            return
        adds = y.name in self.sums
        if not (behind_layer or adds) and not any(node.op_type in (QUANTIZE, *KEEPS, *JOINS) for node in readers):
            return
        ends = self._range(y)
        chains = [chain for node in quantizers if (chain := _chain(node)) is not None and _within_clip(y, chain)]
        if chains:
            pair = max(chains, key=_width)
        elif ends is not None and ends[0] < ends[1]:
            pair = self._new_pair(y, ends)
        else:
            return
        for use in list(y.uses()):
            if use.node is not pair[0]:
                use.node.replace_input_with(use.idx, pair[-1].outputs[0])
        self.made += 1

    def _new_pair(self, y: ir.Value, ends: Range) -> list[ir.Node]:
        """A pair behind `y`: with the quantizer of what reads `y` moved, or of what `y` moves, else for `ends`."""
        node, stem = y.producer(), f"{y.name}/output"
        assert node is not None
        before = node.inputs[0].producer() if node.op_type in KEEPS and node.inputs[0] is not None else None
        beyond = [chain for chain in _moved_readers(y) if _within_clip(y, chain)]
        if before is not None and before.op_type == DEQUANTIZE:
            scale, zero_point = before.inputs[1:3]
        elif beyond:
            scale, zero_point = max(beyond, key=_width)[0].inputs[1:3]
        else:
            quantizer = range_quantizer(*ends)
            scale = constant(self.graph, f"{stem}_scale", np.float32(quantizer.step))
            zero_point = constant(self.graph, f"{stem}_zero_point", np.uint8(-quantizer.code_min))
        pair, x = [], y
        for kind, suffix in ((QUANTIZE, "quantized"), (DEQUANTIZE, "dequantized")):
            output = ir.Value(name=f"{stem}_{suffix}")
            pair.append(ir.node(kind, [x, scale, zero_point], name=output.name, outputs=[output]))
            x = output
        self.graph.insert_after(node, pair)
        return pair

    def _range(self, x: ir.Value) -> Range | None:
        """The least and the largest value that `x` can have, zero between them; None where that is not known."""
        if x not in self.known:
            found = self._computed(x)
            self.known[x] = None if found is None else (min(found[0], 0.0), max(found[1], 0.0))
        return self.known[x]

    def _computed(self, x: ir.Value) -> Range | None:
        node = x.producer()
        if node is None:
            return None
        if (layer := called(node.name or "")) in self.layers:
            return self.layers[layer]
        if node.op_type == DEQUANTIZE:
            return _ends(node)
        if node.op_type in GATES:
            return 0.0, 1.0
        if node.op_type == "Add":
            return self.sums.get(x.name or "")  # its operands' ranges would give a bound, which is too coarse
        if node.op_type not in ("Relu", "Clip", *LEAST, *KEEPS, "Mul", "Concat"):
            return None
        ranges = [self._range(value) for value in node.inputs if value is not None][
            : None if node.op_type in JOINS else 1
        ]
        if any(one is None for one in ranges):
            return None
        known = [one for one in ranges if one is not None]
        low, high = min(one[0] for one in known), max(one[1] for one in known)
        if node.op_type == "Relu":
            return 0.0, high
        if node.op_type == "Clip":
            bounds = clip_before(x)[1]
            return max(low, float(bounds[0])), min(high, float(bounds[1]))
        if node.op_type in LEAST:
            return max(low, LEAST[node.op_type]), high
        if node.op_type == "Mul":
            return self._product(node, known)
        return low, high

    def _product(self, node: ir.Node, ranges: list[Range]) -> Range:
        products = [one * other for one in ranges[0] for other in ranges[1]]
        low, high = min(products), max(products)
        sources = [_source(value) for value in node.inputs if value is not None]
        for x, gate in (sources, sources[::-1]):
            maker = gate.producer()
            first = maker.inputs[0] if maker is not None and maker.op_type in LEAST else None
            if maker is not None and first is not None and _source(first) is x:  # SiLU, or HardSwish in parts
                low = max(low, LEAST[maker.op_type])
        return low, high


def _range_of(quantizer: Quantizer) -> Range:
    return quantizer.step * quantizer.code_min, quantizer.step * quantizer.code_max


def _fused_activation(y: ir.Value) -> bool:
    readers = [use.node for use in y.uses()]
    return len(readers) == 1 and readers[0].op_type in ("Relu", "Clip") and not y.is_graph_output()


def _dequantized(x: ir.Value) -> bool:
    node = x.producer()
    return node is not None and node.op_type == DEQUANTIZE


def _source(x: ir.Value) -> ir.Value:
    """The float tensor that `x` is the dequantized form of; `x` itself if it is none."""
    while (node := x.producer()) is not None and node.op_type == DEQUANTIZE:
        first = node.inputs[0]
        while first is not None and (maker := first.producer()) is not None and maker.op_type in ("Clip", QUANTIZE):
            first = maker.inputs[0]
        if first is None:
            break
        x = first
    return x


def _chain(quantize: ir.Node) -> list[ir.Node] | None:
    """QuantizeLinear, perhaps a Clip of its codes, DequantizeLinear; None if it has less than 8 bits."""
    chain = [quantize]
    while chain[-1].op_type != DEQUANTIZE:
        uses = list(chain[-1].outputs[0].uses())
        if len(uses) != 1 or uses[0].node.op_type not in ("Clip", DEQUANTIZE):
            return None
        chain.append(uses[0].node)
    ends, scale = _ends(chain[-1]), _number(quantize.inputs[1])
    return chain if ends is not None and max(-ends[0], ends[1]) >= EIGHT_BITS * scale else None


def _within_clip(y: ir.Value, chain: list[ir.Node]) -> bool:
    """Whether a quantizer saturates where the Relu or Clip that writes `y`, if any, does: else that stays in float, and
    so does the layer before it."""
    node = y.producer()
    low, high = (0.0, np.inf) if node is not None and node.op_type == "Relu" else clip_before(y)[1]
    scale, zero = _number(chain[0].inputs[1]), _number(chain[0].inputs[2])
    return bool(-zero * scale >= low - TINY * scale and (255 - zero) * scale <= high + TINY * scale)


def _moved_readers(y: ir.Value) -> list[list[ir.Node]]:
    """Chains, as by `_chain`, that quantize `y` behind operators that choose among its values; empty if anything else
    reads `y`, as a chain may saturate below what that reads."""
    found: list[list[ir.Node]] = []
    for use in y.uses():
        if use.node.op_type == QUANTIZE:
            chains = [chain] if (chain := _chain(use.node)) is not None else []
        else:
            moved = use.node.outputs if use.node.op_type in CHOOSES and use.idx == 0 else ()
            parts = [_moved_readers(part) for part in moved if part.uses()]
            chains = [chain for part in parts for chain in part] if all(parts) else []
        if not chains:
            return []
        found += chains
    return found


def _width(chain: list[ir.Node]) -> float:
    low, high = _ends(chain[-1]) or (0.0, 0.0)
    return high - low


def _ends(dequantize: ir.Node) -> Range | None:
    """The least and the largest value that a DequantizeLinear of activations can give; None for several scales."""
    codes, scale, zero = dequantize.inputs[0], dequantize.inputs[1], dequantize.inputs[2]
    const = ir.convenience.get_const_tensor(scale) if scale is not None else None
    if codes is None or const is None or const.size != 1 or codes.producer() is None:
        return None
    low, high = np.clip(clip_before(codes)[1], 0, 255)
    return float((low - _number(zero)) * const.numpy()), float((high - _number(zero)) * const.numpy())


def _number(value: ir.Value | None) -> float:
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    assert tensor is not None
    return float(tensor.numpy().reshape(-1)[0])
