"""Marks that give parts of an exported graph their names: torch's exporter loses names, and additions have none.

The operands of a quantized addition are marked while the exporter traces the model, by a custom operator that no
optimizer looks through. In the graph the marks lead to the addition. Outputs of layers are marked too: their nodes get
the names of their calls, and the exporter folds nothing into their weights, which must keep matching their codes.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import onnx_ir as ir
import torch
from torch import Tensor, nn

from sbs_deploy.graph.names import QUANTIZED_OPS, call_name
from sbs_train.contract.errors import SbsError
from sbs_train.quant.interception import Place, intercept_additions

DOMAIN = "sbs"
_RESERVED = re.compile(r".+\.(input|weight|bias|lhs|rhs)_\w+")
"""Names that later steps give to tensors, and that no parameter may have in a graph."""


@contextmanager
def marked(model: nn.Module, layers: Collection[str], additions: Collection[Place]) -> Iterator[None]:
    """Inside a `with` block, mark outputs of `layers` and operands of `additions` while the model is traced.

    A layer is every module that has its weights.
    """
    owners = {id(model.get_parameter(f"{name}.weight")): name for name in layers}
    calls = Counter[str]()

    def output(layer: str, y: Tensor) -> Tensor:
        calls[layer] += 1
        return _mark(y, layer=call_name(layer, calls[layer] - 1))

    def operands(place: Place, lhs: Tensor, rhs: Tensor) -> tuple[Tensor, Tensor]:
        return _mark(lhs, sum=place.name, side=0), _mark(rhs, sum=place.name, side=1)

    with ExitStack() as stack:
        for module in model.modules():
            layer = owners.get(id(module._parameters.get("weight")))
            if layer is not None:
                # Before all other hooks, which may compute something.
                hook = module.register_forward_hook(lambda m, x, y, n=layer: output(n, y), prepend=True)
                stack.callback(hook.remove)
        stack.callback(model.register_forward_pre_hook(lambda m, x: calls.clear()).remove)  # traced more than once
        stack.enter_context(intercept_additions(model, operands, additions))
        yield


def _mark(x: Tensor, **attributes: str | int) -> Tensor:
    marked: Tensor = torch.onnx.ops.symbolic(
        f"{DOMAIN}::Mark", (x,), {**attributes}, dtype=x.dtype, shape=x.shape, version=1
    )
    return marked


def settle_names(graph: ir.Graph, model: nn.Module, names: tuple[Sequence[str], Sequence[str]]) -> None:
    """Remove the marks from a graph, name its sums by the marks, and restore the names of parameters.

    Raises:
        SbsError: a marked tensor is changed before its addition, or the graph has other inputs or outputs than named.
    """
    for what, values, wanted in (("takes", graph.inputs, names[0]), ("returns", graph.outputs, names[1])):
        if len(values) != len(wanted):
            raise SbsError(f"the exported graph {what} {len(values)} tensors, the model {len(wanted)}; report it")
    sums, reserved = _unmark(graph), [*names[0], *names[1]]
    canonical = _first_names(model)
    ours = {id(value) for value in (*graph.inputs, *graph.outputs, *sums)}
    for value in _values(graph):
        name = value.name or ""
        if id(value) in ours:
            continue
        if canonical.get(name, name) != name and canonical[name] not in graph.initializers:
            value.name = canonical[name]
        elif name in reserved or _RESERVED.fullmatch(name) or name in sums.values():
            value.name = f"{name}:own"
    for value, wanted in sums.items():
        value.name = wanted
    for value, wanted_name in zip((*graph.inputs, *graph.outputs), reserved, strict=True):
        value.name = wanted_name


def _unmark(graph: ir.Graph) -> dict[ir.Value, str]:
    """Remove the marks and name the nodes of marked layers; returns the sums of marked operands with their names."""
    found: dict[ir.Value, str] = {}
    for node in [node for node in graph if node.domain == DOMAIN]:
        x, output = node.inputs[0], node.outputs[0]
        name, side = node.attributes.get_string("sum", ""), node.attributes.get_int("side", 0)
        assert x is not None
        if (layer := node.attributes.get_string("layer", "")) and (product := _product(x)) is not None:
            product.name = layer
        if output.is_graph_output():
            graph.outputs[graph.outputs.index(output)] = x
        for use in list(output.uses()):
            use.node.replace_input_with(use.idx, x)
            if not name:
                continue
            if use.node.op_type != "Add" or use.idx != side:
                raise SbsError(
                    f"addition {name}: torch {torch.__version__} exports it as {use.node.op_type}; "
                    f"train with --search.no-quantize-residual"
                )
            found[use.node.outputs[0]] = name
        graph.remove(node, safe=True)
    return found


def _product(y: ir.Value) -> ir.Node | None:
    """The node that multiplies by a layer's weights, from the layer's output: behind a MatMul stands the bias."""
    node = y.producer()
    if node is not None and node.op_type == "Add":
        node = next((x.producer() for x in node.inputs if x is not None and x.producer() is not None), None)
    return node if node is not None and node.op_type in QUANTIZED_OPS else None


def _first_names(model: nn.Module) -> dict[str, str]:
    """The first name of every parameter, by each of its names: a module may have several."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    return {name: first[id(parameter)] for name, parameter in model.named_parameters(remove_duplicate=False)}


def _values(graph: ir.Graph) -> list[ir.Value]:
    outputs = [value for node in graph.all_nodes() for value in node.outputs]
    return [*graph.initializers.values(), *outputs]
