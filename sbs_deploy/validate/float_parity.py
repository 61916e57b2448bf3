"""Compare the exported graphs, quantization switched off, with the float network of its authors' code.

Without codes, both differ only by float32 rounding, even for networks whose quantized outputs are noise. PyTorch's
float network in float32 and float64 shows the size of this rounding.
"""

from collections.abc import Mapping

import numpy as np
import onnx

from sbs_deploy.export.codes import Codes
from sbs_deploy.export.golden_file import GoldenArrays
from sbs_deploy.graph.arrays import Array, Arrays, Named
from sbs_deploy.graph.comparison import FLOAT_DISAGREEMENT, rms
from sbs_deploy.graph.run import outputs_of
from sbs_deploy.validate.divergence import first_difference
from sbs_deploy.validate.quantizers import Graphs
from sbs_train.contract.errors import SbsError
from sbs_train.contract.validation import Identity

FLOAT_TOLERANCE = 3e-5
"""Largest difference, relative to the root mean square of the output, that passes for any network. Correct graphs of
ten different networks differ by 3e-6 at most."""
FLOAT_ROUNDING = 10.0
"""Largest difference to float64, in units of PyTorch's in float32, that counts as rounding."""


def float_parity(
    slim: onnx.ModelProto,
    quantized: Mapping[str, onnx.ModelProto],
    codes: Codes,
    golden: GoldenArrays,
) -> Identity:
    """Compare the slim graph, and the quantized ones without their quantizers, with the float network.

    Raises:
        SbsError: golden.npz lacks the float network's outputs, or a graph does not run.
    """
    for key, answers in (("float", golden.plain), ("float32", golden.plain32)):
        for name in golden.outputs:
            if name not in answers:
                raise SbsError(f"golden.npz lacks {key}/{name}; make it again with `sbs-deploy export`")
    exact, samples = golden.plain, golden.samples_in(golden.plain)
    inputs = golden.first_inputs(samples)
    limit = {name: _limit(golden.plain32[name], one) for name, one in exact.items()}
    pairs = {name: Graphs(model, slim) for name, model in quantized.items()}
    off = {"slim": slim, **{name: graphs.without_quantizers() for name, graphs in pairs.items()}}
    found = {name: float_outputs(model, inputs, name) for name, model in off.items()}
    error = {name: {key: _error(some.get(key), one) for key, one in exact.items()} for name, some in found.items()}
    right = {name: all(errors[key] <= limit[key] for key in limit) for name, errors in error.items()}
    wrong = [name for graphs in pairs.values() for name in graphs.wrong_quantizers(codes)]
    first = wrong[0] if wrong else None
    for name in quantized:
        if first is None and right["slim"] and not right[name]:
            first = first_difference(off[name], slim, inputs)
    return Identity(
        samples=samples,
        error={
            name: {key: one if np.isfinite(one) else None for key, one in errors.items()}
            for name, errors in error.items()
        },
        limit=limit,
        quantizers_equal=not wrong,
        first_divergence=first,
    )


def parity_failures(found: Identity) -> list[str]:
    """What does not hold of `float_parity`, in words."""
    wrong = [
        f"{name} without quantizers is off by {error:.1e} of the float network's {key} (limit {found.limit[key]:.1e})"
        for name, errors in found.error.items()
        for key, error in ((key, np.inf if one is None else one) for key, one in errors.items())
        if error > found.limit[key]
    ]
    return wrong + ["quantizers are not the plan's"] * (not found.quantizers_equal)


def float_outputs(model: onnx.ModelProto, inputs: Named, name: str) -> Arrays:
    """Outputs of the graph of model.NAME.onnx, node by node; SbsError if the graph does not run."""
    try:
        return outputs_of(model, inputs)
    except SbsError as error:
        raise SbsError(f"model.{name}.onnx does not run ({error}); make it again with `sbs-deploy export`") from error


def _limit(own: Array, exact: Array) -> float:
    """The error of an output that rounding explains."""
    if exact.dtype.kind != "f":
        return max(FLOAT_DISAGREEMENT, FLOAT_ROUNDING * float(np.mean(own != exact)))
    return max(FLOAT_TOLERANCE, FLOAT_ROUNDING * float(np.abs(own - exact).max()) / _size(exact))


def _error(found: Array | None, exact: Array) -> float:
    """Largest relative difference, of integers the part that differs; infinite for NaN, another or no shape."""
    if found is None or found.shape != exact.shape:
        return float("inf")
    if exact.dtype.kind != "f":
        return float(np.mean(found != exact))
    largest = float(np.abs(found - exact).max()) / _size(exact)
    return largest if np.isfinite(largest) else float("inf")


def _size(exact: Array) -> float:
    return max(rms(exact), 1e-30)
