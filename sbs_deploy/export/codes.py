"""Integers of the slim network, in memory and on disk (model.slim.npz), and npz files in general. No torch.

Shapes: codes_OIHW or codes_OI; scale_O one weight scale an output channel.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sbs_train.contract import rundir
from sbs_train.contract.bounds import ARRAYS_BYTES
from sbs_train.contract.errors import SbsError
from sbs_train.contract.grid import CODES, Quantizer
from sbs_train.contract.npz import DAMAGED, parse_npz
from sbs_train.contract.npz import Arrays as Arrays

_PARTS = ("codes", "scale", "input")
_CODES = (-128, 255)
"""Range of all 8-bit codes of inputs, signed or not; codes of outputs have a zero-point of their own."""


@dataclass(frozen=True, kw_only=True)
class QuantizedLayer:
    """A convolution or linear layer in integers: the weights are `codes * scale_O`."""

    codes: npt.NDArray[np.int8]
    """Codes (OIHW or OI) with BatchNorm's sign; its magnitude is in the scale."""
    scale_O: npt.NDArray[np.float32]
    input: Quantizer
    output: Quantizer | None = None
    """How the output becomes integers where a backend needs that; None if the plan has no range for it."""


@dataclass(frozen=True, kw_only=True)
class Codes:
    """Integer weights and quantizers of a slim network."""

    layers: dict[str, QuantizedLayer]
    """Quantized layers by name, in the order in which they run."""
    adds: Mapping[str, tuple[Quantizer, Quantizer]] = field(default_factory=dict)
    """Quantizers of both operands of residual additions, by the name of the sum's tensor."""
    sums: Mapping[str, Quantizer] = field(default_factory=dict)
    """How the sums become integers where a backend needs that, by the same names; empty if the plan has no ranges."""


def save_codes(codes: Codes, path: Path) -> None:
    """Write model.slim.npz atomically: `NAME/codes`, `NAME/scale`, `NAME/input`, perhaps `NAME/output`; `NAME/operands`
    and perhaps `NAME/sum` of an addition."""
    arrays: Arrays = {f"{name}/operands": np.asarray([_row(one) for one in pair]) for name, pair in codes.adds.items()}
    arrays |= {f"{name}/sum": np.asarray(_row(one)) for name, one in codes.sums.items()}
    for name, layer in codes.layers.items():
        arrays[f"{name}/codes"] = layer.codes
        arrays[f"{name}/scale"] = layer.scale_O
        arrays[f"{name}/input"] = np.asarray(_row(layer.input))
        if layer.output is not None:
            arrays[f"{name}/output"] = np.asarray(_row(layer.output))
    save_arrays(arrays, path)


def load_codes(path: Path) -> Codes:
    """Read model.slim.npz; SbsError if the file is missing or damaged."""
    arrays = load_arrays(path)
    try:
        adds, sums = {}, dict[str, Quantizer]()
        for key in [key for key in arrays if key.endswith("/operands")]:
            lhs, rhs = arrays.pop(key)
            name = key.removesuffix("/operands")
            adds[name] = (_quantizer(lhs), _quantizer(rhs))
            if f"{name}/sum" in arrays:
                sums[name] = _quantizer(arrays.pop(f"{name}/sum"), (-CODES, CODES))
        names = [key.removesuffix("/codes") for key in arrays if key.endswith("/codes")]
        outputs = {name: arrays.pop(f"{name}/output") for name in names if f"{name}/output" in arrays}
        layers = {
            name: _layer(name, *(arrays.pop(f"{name}/{part}") for part in _PARTS), output_4=outputs.get(name))
            for name in names
        }
        if arrays:
            raise ValueError(f"{next(iter(arrays))!r:.100} belongs to no layer")
    except KeyError as error:
        raise SbsError(f"{path} lacks {error}; make it again with `sbs-deploy export`") from error
    except (TypeError, ValueError, IndexError, OverflowError) as error:
        raise SbsError(f"{path} is damaged ({error}); make it again with `sbs-deploy export`") from error
    return Codes(layers=layers, adds=adds, sums=sums)


def _layer(
    name: str,
    codes: npt.NDArray[Any],
    scale_O: npt.NDArray[Any],
    input_4: npt.NDArray[Any],
    *,
    output_4: npt.NDArray[Any] | None,
) -> QuantizedLayer:
    """A layer from its arrays; ValueError for arrays of another form than the format's."""
    if codes.dtype != np.int8 or codes.ndim < 2 or not codes.size:
        raise ValueError(f"codes of {name} are {codes.dtype} {codes.shape}, not int8 of two axes or more")
    if scale_O.dtype != np.float32 or scale_O.shape != codes.shape[:1]:
        raise ValueError(f"scales of {name} are {scale_O.dtype} {scale_O.shape}, not one float32 an output channel")
    if not np.all(np.isfinite(scale_O) & (scale_O >= 0)):
        raise ValueError(f"a scale of {name} is negative or no number")
    output = None if output_4 is None else _quantizer(output_4, (-CODES, CODES))
    return QuantizedLayer(codes=codes, scale_O=scale_O, input=_quantizer(input_4), output=output)


def _row(quantizer: Quantizer) -> list[float]:
    # The ONNX file holds float32, which the file's float64 keeps exactly.
    return [float(np.float32(quantizer.step)), quantizer.code_min, quantizer.code_max, quantizer.signed]


def _quantizer(row_4: npt.NDArray[Any], ends: tuple[int, int] = _CODES) -> Quantizer:
    step, code_min, code_max, signed = row_4.astype(float).tolist()
    in_byte = ends[0] <= code_min <= code_max <= ends[1] and code_max - code_min <= CODES
    if not (0 < step < float("inf") and in_byte and signed == (code_min < 0)):
        raise ValueError(f"{row_4.tolist()} is no step with codes of 8 bits")
    return Quantizer(step=step, code_min=int(code_min), code_max=int(code_max))


def save_arrays(arrays: Mapping[str, npt.NDArray[Any]], path: Path) -> None:
    """Write a compressed npz atomically."""
    with rundir.atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def load_arrays(path: Path) -> Arrays:
    """All arrays of an npz file; SbsError if the file is missing or damaged."""
    content = rundir.read_recorded(path, "sbs-deploy export", ARRAYS_BYTES)
    try:
        return parse_npz(io.BytesIO(content))
    except DAMAGED as error:
        reason = " ".join(str(error).split())[:200]
        raise SbsError(f"{path} is damaged ({reason}); delete it and run `sbs-deploy export`") from error
