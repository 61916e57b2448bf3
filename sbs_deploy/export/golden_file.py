"""golden.npz, without torch: samples, and what PyTorch makes of them, by the network's names of inputs and outputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from sbs_deploy.export.codes import load_arrays, save_arrays
from sbs_deploy.graph.arrays import Array, Arrays, ArraySpec, first, growing, per_sample, samples_of
from sbs_deploy.graph.comparison import Reference
from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import Plan

_OLD = {"inputs": "input/input", **{name: f"{name}/logits" for name in ("exact", "float", "float32")}}
_OLD["logits"] = "output/logits"
"""Names of arrays in files that were written for one input and one output."""
_LARGEST = float(np.finfo(np.float32).max)
REMEDY = "delete it and run `sbs-deploy export`"


@dataclass(frozen=True, kw_only=True)
class GoldenArrays:
    """Samples for a network, and its answers in PyTorch."""

    input_specs: Sequence[ArraySpec]
    output_specs: Sequence[ArraySpec]
    inputs: Arrays
    outputs: Arrays
    """Outputs of the trained, quantized network in float32."""
    exact: Arrays = field(default_factory=dict)
    """The same in float64 for the first samples; empty where the network cannot compute in float64."""
    plain: Arrays = field(default_factory=dict)
    """Outputs of the network without rounded activations in float64, for the first samples."""
    plain32: Arrays = field(default_factory=dict)
    """The same in float32; the difference is rounding."""
    taps: Arrays = field(default_factory=dict)
    """Outputs of layers for the first samples, in the order in which layers run."""
    labels: Array | None = None
    """`(N)` classes of the samples, where the task has classes."""

    @property
    def samples(self) -> int:
        """Number of samples."""
        return samples_of(self.inputs, self.input_specs)

    @property
    def reference(self) -> Reference:
        """The answers that outputs are compared with."""
        return Reference(outputs=self.outputs, exact=self.exact, labels=self.labels)

    @property
    def tapped(self) -> int:
        """Number of samples that the outputs of layers are known for."""
        return min((len(tap) for tap in self.taps.values()), default=0)

    def samples_in(self, answers: Mapping[str, Array]) -> int:
        """Number of samples that the answers of `exact` or `plain` are known for."""
        rows = self._rows(1)
        return min((len(answers[name]) // count for name, count in rows.items() if name in answers), default=1)

    def first_inputs(self, samples: int) -> Arrays:
        """The inputs of the first samples."""
        return first(self.inputs, dict.fromkeys(per_sample(self.input_specs), samples))

    def first(self, samples: int) -> "GoldenArrays":
        """The first samples with their answers."""
        rows = self._rows(samples)
        return replace(
            self,
            inputs=self.first_inputs(samples),
            outputs=first(self.outputs, rows),
            exact=first(self.exact, rows),
            plain=first(self.plain, rows),
            plain32=first(self.plain32, rows),
            labels=None if self.labels is None else self.labels[:samples],
        )

    def save(self, path: Path) -> None:
        """Write golden.npz atomically."""
        groups = {"input": self.inputs, "output": self.outputs, "exact": self.exact, "float": self.plain}
        groups |= {"float32": self.plain32, "tap": self.taps}
        arrays = {f"{group}/{name}": array for group, found in groups.items() for name, array in found.items()}
        save_arrays(arrays if self.labels is None else {**arrays, "labels": self.labels}, path)

    def _rows(self, samples: int) -> dict[str, int]:
        """Rows of the outputs that grow with the samples, for a number of samples."""
        names = growing(self.output_specs)
        return {name: samples * (len(self.outputs[name]) // self.samples) for name in names}


def load_golden(path: Path, plan: Plan) -> GoldenArrays:
    """Read golden.npz.

    Raises:
        SbsError: the file is missing or damaged, or an array is missing or does not fit the plan's inputs and outputs.
    """
    inputs, outputs = specs_of(plan)
    groups: dict[str, Arrays] = {group: {} for group in ("input", "output", "exact", "float", "float32", "tap")}
    labels = None
    for key, array in load_arrays(path).items():
        group, _, name = _OLD.get(key, key).partition("/")
        if key == "labels":
            labels = array
        elif group not in groups or not name:
            raise SbsError(f"{path}: nothing is called {key!r:.100}; {REMEDY}")
        else:
            groups[group][name] = array
    for group, specs in (("input", inputs), ("output", outputs)):
        for spec in specs:
            if spec.name not in groups[group]:
                raise SbsError(f"{path} lacks {group}/{spec.name}; make it again with `sbs-deploy export`")
    golden = GoldenArrays(
        input_specs=inputs,
        output_specs=outputs,
        inputs={spec.name: _typed(groups["input"][spec.name], spec) for spec in inputs},
        outputs={spec.name: _typed(groups["output"][spec.name], spec) for spec in outputs},
        exact=groups["exact"],
        plain=groups["float"],
        plain32=groups["float32"],
        taps=groups["tap"],
        labels=labels,
    )
    wrong = _wrong(golden)
    if wrong is not None:
        raise SbsError(f"{path}: {wrong} does not fit, or is not finite; {REMEDY}")
    return golden


def specs_of(plan: Plan) -> tuple[tuple[ArraySpec, ...], tuple[ArraySpec, ...]]:
    """Inputs and outputs of the plan's network."""
    inputs, outputs = (
        tuple(ArraySpec(name=one.name, dtype=one.dtype, shape=tuple(one.shape)) for one in specs)
        for specs in (plan.inputs, plan.outputs)
    )
    return inputs, outputs


def _typed(array: Array, spec: ArraySpec) -> Array:
    """The array in the type of the spec, if it is of the same kind of number."""
    same = array.dtype.kind == np.dtype(spec.dtype).kind
    return array.astype(spec.dtype, copy=False) if same else array


def _wrong(golden: GoldenArrays) -> str | None:
    """The first array that does not fit, with its type and shape."""

    def fits(array: Array, spec: ArraySpec) -> bool:
        return (
            array.dtype == spec.dtype
            and array.ndim == len(spec.shape)
            and all(size == want or isinstance(want, str) for size, want in zip(array.shape, spec.shape, strict=True))
            and _finite(array)
        )

    for spec in golden.input_specs:
        array = golden.inputs[spec.name]
        if not fits(array, spec) or (spec.name in per_sample(golden.input_specs) and len(array) != golden.samples):
            return f"input/{spec.name} {array.dtype} {array.shape}"
    samples, grow = golden.samples, growing(golden.output_specs)
    judged: list[tuple[str, Array, bool]] = []
    for spec in golden.output_specs:
        array, rows = golden.outputs[spec.name], 0
        right = fits(array, spec)
        if right and spec.name in grow:
            rows = len(array) // samples
            right = rows > 0 and len(array) == rows * samples
        judged.append((f"output/{spec.name}", array, right))
        for group, answers in (("exact", golden.exact), ("float", golden.plain), ("float32", golden.plain32)):
            if spec.name in answers:
                other = answers[spec.name]
                like = right and other.ndim == array.ndim and other.shape[1:] == array.shape[1:]
                like = like and other.dtype.kind == array.dtype.kind and _finite(other)
                if like and rows:
                    like = 0 < len(other) <= len(array) and len(other) % rows == 0
                if group == "float32":
                    like = like and other.shape == golden.plain.get(spec.name, other).shape
                judged.append((f"{group}/{spec.name}", other, like))
    for name, tap in golden.taps.items():
        judged.append((f"tap/{name}", tap, tap.dtype.kind == "f" and tap.ndim > 0 and len(tap) > 0))
    if golden.labels is not None:
        labels, classes = golden.labels, golden.reference.classes
        right = labels.dtype.kind in "iu" and labels.shape == (samples,)
        if right and classes is not None:
            (logits,) = golden.outputs.values()
            right = 0 <= labels.min() <= labels.max() < logits.shape[1]
        judged.append(("labels", labels, right))
    return next((f"{name} {array.dtype} {array.shape}" for name, array, right in judged if not right), None)


def _finite(array: Array) -> bool:
    return array.size > 0 and (array.dtype.kind != "f" or bool((np.abs(array) <= _LARGEST).all()))  # False for NaN
