"""Float ONNX graphs through torch's exporter."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import onnx
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from sbs_deploy.export.codes import Codes
from sbs_deploy.export.marks import DOMAIN, marked, settle_names
from sbs_deploy.export.qdq import OPSET
from sbs_deploy.export.slim import SlimNetwork
from sbs_deploy.graph.names import called
from sbs_train.contract.errors import SbsError
from sbs_train.example import Example, specs_of
from sbs_train.inputs.exportable import dynamic_shapes, flat_outputs, quiet_exporter
from sbs_train.quant.interception import Place

Names = tuple[Sequence[str], Sequence[str]]


def onnx_from_module(
    model: nn.Module,
    example: Example,
    layers: Collection[str] = (),
    additions: Collection[Place] = (),
    *,
    names: Names | None = None,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
) -> onnx.ModelProto:
    """A float module as ONNX: opset 21, dynamic batch; initializers keep torch's names.

    Args:
        example: two samples or more.
        names: of the inputs and of the outputs, in their order; those of `specs_of` unless given.
        dynamic: by name of an input, the names of its axes whose sizes vary, such as {0: "batch", 2: "height"};
            axis 0 of every other input.
        layers: layers whose weights must not change, so that nothing may be folded into them.
        additions: additions whose sum gets `Place.name` as its name in the graph.

    Raises:
        SbsError: torch cannot export the module, or returns other outputs than named.
    """
    if names is None:
        inputs, outputs = specs_of(model, example)
        names = [one.name for one in inputs], [one.name for one in outputs]
    example = example.ordered(model)
    shapes = dynamic_shapes(model, example, dynamic)
    with quiet_exporter(), marked(model, layers, additions), flat_outputs(model):
        try:
            program = torch.onnx.export(
                model.eval(),
                example.args,
                kwargs=example.kwargs,
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=shapes,
                # Temporary names that no parameter has; `settle_names` sets the final names.
                input_names=[f".{name}" for name in names[0]],
                output_names=[f".{name}" for name in names[1]],
                external_data=False,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            reason = str(error.__cause__ or error).strip().partition("\n")[0]
            raise SbsError(f"torch {torch.__version__} cannot export this model to ONNX: {reason}") from error
    assert program is not None
    settle_names(program.model.graph, model, names)
    program.model.opset_imports.pop(DOMAIN, None)
    proto = program.model_proto
    _strip_traces(proto)
    _name_transposed(proto, model)
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    # The exporter only logs when it cannot convert to the requested version.
    if versions.get("") != OPSET:
        raise SbsError(
            f"torch {torch.__version__} exported opset {versions.get('')}, not {OPSET}; install torch >= 2.8"
        )
    _check_open(proto, shapes)
    _own_constants(proto)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def slim_onnx(
    slim: SlimNetwork,
    example: Example,
    names: Names | None = None,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
) -> onnx.ModelProto:
    """The slim float network as ONNX; weights of quantized layers are `codes * scale_O`.

    Args:
        names, dynamic: as in `onnx_from_module`.

    Raises:
        SbsError: torch's exporter changed weights, which then do not match the codes.
    """
    proto = onnx_from_module(slim.model, example, slim.codes.layers, slim.places, names=names, dynamic=dynamic)
    _own_weights(proto, slim.codes.layers)
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    transposed = {node.input[1] for node in proto.graph.node if node.op_type == "MatMul"}
    for name in slim.codes.layers:
        tensor = tensors.get(f"{name}.weight")
        if tensor is None:
            raise SbsError(f"layer {name}: torch's exporter lost its weights; report the model")
        expected = slim.model.get_parameter(f"{name}.weight").detach()
        found = torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
        found = found.T if f"{name}.weight" in transposed else found
        if not torch.allclose(found, expected, rtol=1e-5, atol=0):
            raise SbsError(f"layer {name}: torch's exporter changed its weights; report the model")
    return proto


def codes_in(graph: onnx.ModelProto, codes: Codes) -> Codes:
    """The codes without additions that the exporter removed because nothing reads their sums."""
    sums = {node.output[0] for node in graph.graph.node}
    adds = {name: pair for name, pair in codes.adds.items() if name in sums}
    return replace(codes, adds=adds, sums={name: one for name, one in codes.sums.items() if name in sums})


def _check_open(proto: onnx.ModelProto, shapes: Any) -> None:
    """SbsError for an axis that shall vary and that the exporter's fallbacks fixed to the size in the example."""
    leaves = tree_leaves(shapes, is_leaf=lambda one: isinstance(one, dict) and all(isinstance(key, int) for key in one))
    for value, axes in zip(proto.graph.input, [axes for axes in leaves if axes is not None], strict=False):
        dims = value.type.tensor_type.shape.dim
        for axis in (axis for axis in axes if not dims[axis].dim_param):
            raise SbsError(
                f"the model works for one size of axis {axis} of input {value.name} alone, {dims[axis].dim_value}: its "
                f"forward makes a number of it, as len(x) does; use x.shape[{axis}], or fix the axis by "
                f'dynamic={{"{value.name}": {{}}}}'
            )


def _own_constants(proto: onnx.ModelProto) -> None:
    """Let a node compute every output that is a constant, such as a detector's anchors."""
    outputs = {value.name for value in proto.graph.output}
    for tensor in proto.graph.initializer:
        if tensor.name in outputs:
            output, tensor.name = tensor.name, f"{tensor.name}:constant"
            for node in proto.graph.node:
                node.input[:] = [tensor.name if name == output else name for name in node.input]
            proto.graph.node.append(onnx.helper.make_node("Identity", [tensor.name], [output], name=output))


def _own_weights(proto: onnx.ModelProto, layers: Collection[str]) -> None:
    """Let every call of a layer read `NAME.weight`: the exporter merges equal weights, such as those that are all zero,
    and loses the name of transposed ones."""
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        own = f"{called(node.name)}.weight"
        if called(node.name) not in layers or node.input[1] not in tensors:
            continue
        if own not in tensors:
            tensors[own] = proto.graph.initializer.add()
            tensors[own].CopyFrom(tensors[node.input[1]])
            tensors[own].name = own
        node.input[1] = own
    read = {name for node in proto.graph.node for name in node.input}
    unread = [tensor for tensor in proto.graph.initializer if tensor.name not in read]
    for tensor in unread:
        proto.graph.initializer.remove(tensor)


def _name_transposed(proto: onnx.ModelProto, model: nn.Module) -> None:
    """Give transposed weights of linear layers the names of their layers.

    A linear layer over more than two axes becomes a MatMul with a constant, `W` transposed, that has lost its name.
    """
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    wanted = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    missing = {name: m.weight for name, m in wanted.items() if f"{name}.weight" not in tensors}
    for node in proto.graph.node:
        tensor = tensors.get(node.input[1]) if node.op_type == "MatMul" else None
        if tensor is None or not missing:
            continue
        values = torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
        name = next((n for n, w in missing.items() if w.T.shape == values.shape and torch.equal(w.T, values)), None)
        if name is not None:
            del missing[name]
            lost, tensor.name = tensor.name, f"{name}.weight"
            for reader in proto.graph.node:
                reader.input[:] = [tensor.name if i == lost else i for i in reader.input]


def _strip_traces(proto: onnx.ModelProto) -> None:
    """Remove the exporter's debug data: paths of this machine, and most bytes of a small file."""
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        del value.metadata_props[:]
    del proto.graph.metadata_props[:]
    del proto.metadata_props[:]
    proto.doc_string = proto.graph.doc_string = ""
    proto.graph.name = "sbs"
