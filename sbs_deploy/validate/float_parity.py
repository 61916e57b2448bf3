"""Compare the exported graphs, quantization switched off, with the float network of its authors' code.

Without codes, both differ only by float32 rounding, even for networks whose quantized outputs are noise. PyTorch's
float network in float32 and float64 shows the size of this rounding.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from sbs_deploy.export.codes import Codes
from sbs_deploy.graph.names import FloatArray
from sbs_deploy.graph.run import logits_of
from sbs_deploy.validate.divergence import first_difference
from sbs_deploy.validate.quantizers import Graphs
from sbs_train.contract.errors import SbsError
from sbs_train.contract.validation import Identity

FLOAT_TOLERANCE = 3e-5
"""Largest |Δlogit|, relative to the root mean square of the logits, that passes for any network. Correct graphs of ten
different networks differ by 3e-6 at most."""
FLOAT_ROUNDING = 10.0
"""Largest |Δlogit| against float64, in units of PyTorch's in float32, that counts as rounding."""


def float_parity(
    slim: onnx.ModelProto,
    quantized: Mapping[str, onnx.ModelProto],
    codes: Codes,
    golden: Mapping[str, npt.NDArray[Any]],
) -> Identity:
    """Compare the slim graph, and the quantized ones without their quantizers, with the float network.

    Raises:
        SbsError: golden.npz lacks the float network's logits, or a graph does not run.
    """
    for key in ("float", "float32"):
        if key not in golden or golden[key].shape[1:] != golden["logits"].shape[1:]:
            raise SbsError(
                f"golden.npz lacks {key}, the float network's answers; make it again with `sbs-deploy export`"
            )
    exact, own = golden["float"], golden["float32"]
    images = np.ascontiguousarray(golden["inputs"][: len(exact)], np.float32)
    scale = max(float(np.sqrt(np.mean(np.square(exact)))), 1e-30)
    limit = max(FLOAT_TOLERANCE, FLOAT_ROUNDING * float(np.abs(own - exact).max()) / scale)
    pairs = {name: Graphs(model, slim) for name, model in quantized.items()}
    off = {"slim": slim, **{name: graphs.without_quantizers() for name, graphs in pairs.items()}}
    error = {name: _largest(float_logits(model, images, name), exact) / scale for name, model in off.items()}
    wrong = [name for graphs in pairs.values() for name in graphs.wrong_quantizers(codes)]
    first = wrong[0] if wrong else None
    for name in quantized:
        if first is None and error["slim"] <= limit and not error[name] <= limit:
            first = first_difference(off[name], slim, images)
    return Identity(
        images=len(exact),
        error={name: one if np.isfinite(one) else None for name, one in error.items()},
        limit=limit,
        quantizers_equal=not wrong,
        first_divergence=first,
    )


def parity_failures(found: Identity) -> list[str]:
    """What does not hold of `float_parity`, in words."""
    errors = {name: np.inf if error is None else error for name, error in found.error.items()}
    wrong = [
        f"{name} without quantizers is off by {error:.1e} of the float network's logits (limit {found.limit:.1e})"
        for name, error in errors.items()
        if error > found.limit
    ]
    return wrong + ["quantizers are not the plan's"] * (not found.quantizers_equal)


def float_logits(model: onnx.ModelProto, images: npt.NDArray[Any], name: str) -> FloatArray:
    """Logits (N, classes) of the graph of model.NAME.onnx, node by node; SbsError if the graph does not run."""
    try:
        return logits_of(model, images)
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise SbsError(f"model.{name}.onnx does not run ({reason}); make it again with `sbs-deploy export`") from error


def _largest(found: npt.NDArray[Any], exact: npt.NDArray[Any]) -> float:
    """Largest difference; infinite for NaN or another shape."""
    if found.shape != exact.shape:
        return float("inf")
    largest = float(np.abs(found - exact).max())
    return largest if np.isfinite(largest) else float("inf")
