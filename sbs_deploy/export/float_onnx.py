"""Float ONNX graphs through torch's exporter, and golden.npz, the reference of all later comparisons.

Shapes: inputs_NCHW, logits (N, classes), tap_NCHW or (N, features).
"""

import copy
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import onnx
import torch
from torch import Tensor, nn

from sbs_deploy.export.codes import Arrays, Codes
from sbs_deploy.export.marks import DOMAIN, marked, settle_names
from sbs_deploy.export.qdq import OPSET
from sbs_deploy.export.slim import SlimNetwork, exact_dtype
from sbs_deploy.graph.names import call_name, called
from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import Plan
from sbs_train.example import Example, specs_of
from sbs_train.inputs.data import Dataset
from sbs_train.inputs.exportable import dynamic_shapes, quiet_exporter
from sbs_train.inputs.state import load_state
from sbs_train.network.network import Network
from sbs_train.quant.folding import BATCHNORMS, plain_copy
from sbs_train.quant.interception import Place

GOLDEN_IMAGES = 10_000
GOLDEN_BYTES = 2**28
"""Most bytes of the images in golden.npz, which limits the number of large images."""
EXACT_IMAGES = 256
"""First images whose logits golden.npz also holds in float64; the difference to float32 is rounding."""
EXACT_BATCH = 32
FLOAT_IMAGES = 64
"""First images for which golden.npz holds the float network's logits."""
NUDGE = 2.0**-22
"""Relative change of the input by the last bits of float32, to estimate rounding without float64."""
TAP_IMAGES = 4
TAP_PREFIX = "tap/"
"""Prefix of keys of golden.npz for a layer's output, BatchNorm included, on the first images."""

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
    with quiet_exporter(), marked(model, layers, additions):
        try:
            program = torch.onnx.export(
                model.eval(),
                example.args,
                kwargs=example.kwargs,
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=dynamic_shapes(model, example, dynamic),
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
    onnx.checker.check_model(proto, full_check=True)
    return proto


def slim_onnx(slim: SlimNetwork, example: Example, names: Names | None = None) -> onnx.ModelProto:
    """The slim float network as ONNX; weights of quantized layers are `codes * scale_O`.

    Raises:
        SbsError: torch's exporter changed weights, which then do not match the codes.
    """
    proto = onnx_from_module(slim.model, example, slim.codes.layers, slim.places, names=names)
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


@torch.no_grad()
def golden_arrays(network: Network, plan: Plan, data: Dataset, original: nn.Module | None = None) -> Arrays:
    """Normalised test images, their labels, and outputs of the masked, quantized network in eval mode.

    `logits` (N, classes) in float32 as trained, `exact` (first images, classes) in float64,
    unless the network cannot compute in it; `float` and `float32` are `float_arrays`.

    Args:
        original: a float model as its authors' code builds it; None for a copy of the network's float model.
    """
    images, labels, logits = [], [], []
    size = math.prod(network.inputs[0].sample) * 4
    wanted = max(TAP_IMAGES, min(GOLDEN_IMAGES, GOLDEN_BYTES // size))
    for x_NCHW, y_N in data.eval_batches(data.test):
        images.append(x_NCHW)
        labels.append(y_N)
        logits.append(network.model(x_NCHW))
        if sum(len(batch) for batch in labels) >= wanted:
            break
    arrays: Arrays = {
        name: torch.cat(parts)[:wanted].numpy()
        for name, parts in (("inputs", images), ("logits", logits), ("labels", labels))
    }
    if exact_dtype(network.model, network.example) == torch.float64:
        exact = copy.deepcopy(network.model).double()
        some = torch.split(torch.from_numpy(arrays["inputs"][:EXACT_IMAGES]).double(), EXACT_BATCH)
        arrays["exact"] = torch.cat([exact(x_NCHW) for x_NCHW in some]).numpy()
    arrays |= float_arrays(network, original, torch.from_numpy(arrays["inputs"][:FLOAT_IMAGES]))
    taps = tapped(network, plan, images[0][:TAP_IMAGES])
    return arrays | {f"{TAP_PREFIX}{name}": tap.numpy() for name, tap in taps.items()}


@torch.no_grad()
def float_arrays(network: Network, original: nn.Module | None, x_NCHW: Tensor) -> Arrays:
    """Logits of the original float model with the trained weights, quantized and masked; no input is quantized.

    No compression code takes part, so a comparison shows its mistakes: in the quantized network, in the slim network,
    and in the exported files.

    Returns:
        `float`, in float64 if the network can compute in float64, and `float32`; their difference is rounding.
    """
    model = (plain_copy(network.model) if original is None else original).eval()
    # By tensor, not by name: a module may have two names.
    weights = {layer.weight: layer.quantized_weight() for layer in network.layers.values()}
    trained = network.model.state_dict(keep_vars=True)
    load_state(model, {name: weights.get(trained[name], trained[name]) for name in model.state_dict()})
    single, double = x_NCHW, x_NCHW * (1 + NUDGE)
    answers = torch.cat([model(x) for x in torch.split(single, EXACT_BATCH)])
    if exact_dtype(model, network.example) == torch.float64:
        model, double = copy.deepcopy(model).double(), x_NCHW.double()
    exact = torch.cat([model(x) for x in torch.split(double, EXACT_BATCH)])
    return {"float": exact.double().numpy(), "float32": answers.numpy()}


@torch.no_grad()
def tapped(network: Network, plan: Plan, x_NCHW: Tensor) -> dict[str, Tensor]:
    """Outputs of all calls of layers, BatchNorm included, kept channels only, in the order in which they run."""
    batchnorm_of = network.batchnorms
    # What a BatchNorm with an activation inside writes is not what the folded layer writes.
    plain = {name for name, norm in batchnorm_of.items() if type(network.model.get_submodule(norm)) in BATCHNORMS}
    rows = [row for row in plan.layers if row.name not in batchnorm_of or row.name in plain]
    taps, calls = dict[str, Tensor](), Counter[str]()

    def keep(name: str, output: Tensor) -> None:
        layer = plan.layer(name)
        kept = torch.tensor(plan.group(layer.group_out).kept)
        axis = -1 if layer.kind == "linear" else 1  # a linear layer may stand in an (N, H, W, C) network
        calls[name] += 1
        taps[call_name(name, calls[name] - 1)] = output.index_select(
            axis, kept
        ).clone()  # an in-place activation may follow

    hooks = [
        network.model.get_submodule(batchnorm_of.get(row.name, row.name)).register_forward_hook(
            lambda m, x, y, n=row.name: keep(n, y)
        )
        for row in rows
    ]
    network.model(x_NCHW)
    for hook in hooks:
        hook.remove()
    return taps


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
            tensor.name = f"{name}.weight"
            for reader in proto.graph.node:
                reader.input[:] = [tensor.name if i == node.input[1] else i for i in reader.input]


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
