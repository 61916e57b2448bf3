"""Float graphs of models by name, exported like any run's, BatchNorm folded. Needs torch, when it is called."""

from typing import TYPE_CHECKING

from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import InputSpec, ModelSpec

if TYPE_CHECKING:
    import onnx


def float_onnx(name: str, input: tuple[int, int, int], classes: int | None, width: int) -> "onnx.ModelProto":
    """The dense network with random weights.

    Raises:
        SbsError: no model has that name, or torch cannot export it.
    """
    from sbs_deploy.export.float_onnx import onnx_from_module
    from sbs_train.inputs.models import build_model
    from sbs_train.inputs.zoo import is_foreign

    channels, height, columns = input
    if classes is None:
        classes = 1000 if is_foreign(name) else 10
    if min(*input, classes, width) < 1:
        raise SbsError("--input, --classes and --width must be above 0")
    model = build_model(ModelSpec(name=name, width=width, num_classes=classes), channels, size=(height, columns))
    spec = InputSpec(channels=channels, height=height, width=columns, mean=[0.0] * channels, std=[1.0] * channels)
    return onnx_from_module(model.eval(), spec)
