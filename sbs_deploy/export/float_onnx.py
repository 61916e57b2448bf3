"""Float ONNX graphs through torch's exporter, and the golden file that everything later is compared with.

Shapes: inputs_NCHW, logits (N, classes), tap_NCHW or (N, features).
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import onnx
import torch
from torch import Tensor, nn

from sbs_deploy.export.codes import Arrays
from sbs_deploy.export.qdq import OPSET
from sbs_deploy.names import INPUT, OUTPUT
from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import InputSpec, Plan
from sbs_train.inputs.data import Dataset
from sbs_train.quant.folding import paired_batchnorms, plain_copy
from sbs_train.stages.plans import Network

GOLDEN_IMAGES = 10_000
TAP_IMAGES = 4
TAP_PREFIX = "tap/"
"""Keys of golden.npz that hold what a layer writes, BatchNorm included, for the first images."""


def onnx_from_module(model: nn.Module, input: InputSpec) -> onnx.ModelProto:
    """A float module as ONNX: opset 21, dynamic batch, `input` to `logits`; initializers keep torch's names.

    Raises:
        SbsError: torch cannot export the module.
    """
    example = torch.zeros(2, input.channels, input.height, input.width)
    with _quiet():
        try:
            program = torch.onnx.export(
                model.eval(),
                (example,),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                input_names=[INPUT],
                output_names=[OUTPUT],
                external_data=False,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            reason = str(error.__cause__ or error).strip().partition("\n")[0]
            raise SbsError(f"torch {torch.__version__} cannot export this model to ONNX: {reason}") from error
    assert program is not None
    proto = program.model_proto
    _strip_traces(proto)
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    # The exporter only logs it when it cannot convert to the version asked for.
    if versions.get("") != OPSET:
        raise SbsError(
            f"torch {torch.__version__} exported opset {versions.get('')}, not {OPSET}; install torch >= 2.8"
        )
    onnx.checker.check_model(proto, full_check=True)
    return proto


def dense_onnx(network: Network) -> onnx.ModelProto:
    """The float network before any compression: the control."""
    return onnx_from_module(plain_copy(network.model), network.input)


@torch.no_grad()
def golden_arrays(network: Network, plan: Plan, data: Dataset) -> Arrays:
    """Normalised test images, their labels, and what the masked, quantized network makes of them in eval mode."""
    images, labels, logits = [], [], []
    for x_NCHW, y_N in data.eval_batches(data.test):
        images.append(x_NCHW)
        labels.append(y_N)
        logits.append(network.model(x_NCHW))
        if sum(len(batch) for batch in labels) >= GOLDEN_IMAGES:
            break
    arrays: Arrays = {
        name: torch.cat(parts)[:GOLDEN_IMAGES].numpy()
        for name, parts in (("inputs", images), ("logits", logits), ("labels", labels))
    }
    taps = tapped(network, plan, images[0][:TAP_IMAGES])
    return arrays | {f"{TAP_PREFIX}{name}": tap.numpy() for name, tap in taps.items()}


@torch.no_grad()
def tapped(network: Network, plan: Plan, x_NCHW: Tensor) -> dict[str, Tensor]:
    """What every layer writes, behind its BatchNorm, the kept channels alone; in the order in which they run."""
    batchnorm_of = paired_batchnorms(plain_copy(network.model).to(x_NCHW.dtype), x_NCHW[:1])
    taps: dict[str, Tensor] = {}

    def keep(name: str, output: Tensor) -> None:
        kept = torch.tensor(plan.group(plan.layer(name).group_out).kept)
        axis = 1 if output.dim() == 4 else -1
        taps[name] = output.index_select(axis, kept).clone()  # an in-place activation may follow

    hooks = [
        network.model.get_submodule(batchnorm_of.get(row.name, row.name)).register_forward_hook(
            lambda m, x, y, n=row.name: keep(n, y)
        )
        for row in plan.layers
    ]
    network.model(x_NCHW)
    for hook in hooks:
        hook.remove()
    return taps


def _strip_traces(proto: onnx.ModelProto) -> None:
    """Remove what the exporter notes for debugging: source paths of this machine, and most of a small file's bytes."""
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        del value.metadata_props[:]
    del proto.graph.metadata_props[:]
    del proto.metadata_props[:]
    proto.doc_string = proto.graph.doc_string = ""
    proto.graph.name = "sbs"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints progress and warns of its own deprecations; neither says anything to a user."""
    previous = logging.root.manager.disable
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(previous)
