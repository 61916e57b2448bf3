"""golden.npz: samples and what PyTorch makes of them, the reference of all later comparisons."""

import copy
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from sbs_deploy.export.golden_file import GoldenArrays, specs_of
from sbs_deploy.export.slim import exact_dtype
from sbs_deploy.graph.arrays import Arrays, ArraySpec, batch_axis, checked, described, growing, joined, per_sample
from sbs_deploy.graph.names import call_name
from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import Plan
from sbs_train.example import Example, named_outputs
from sbs_train.inputs.state import load_state
from sbs_train.network.network import Network
from sbs_train.quant.folding import BATCHNORMS, plain_copy

Batch = tuple[Example, Tensor | None]
"""Inputs of a network, and the samples' classes (N) where the task has classes."""

SAMPLES = 10_000
BYTES = 2**28
"""Most bytes of inputs with outputs, of exact outputs, of the float network's outputs, and of taps, each: it limits the
number of large samples, and a reader takes four times as many in all (`bounds.ARRAYS_BYTES`)."""
EXACT_SAMPLES = 256
"""First samples whose outputs golden.npz also holds in float64; the difference to float32 is rounding."""
BATCH = 32
"""Samples that are computed at a time in float64."""
FLOAT_SAMPLES = 64
"""First samples for which golden.npz holds the float network's outputs."""
NUDGE = 2.0**-22
"""Relative change of the inputs by the last bits of float32, to estimate rounding without float64."""
TAP_SAMPLES = 4


def golden_arrays(
    network: Network, plan: Plan, batches: Iterable[Batch], original: nn.Module | None = None
) -> GoldenArrays:
    """Samples, and outputs of the masked, quantized network in eval mode.

    Args:
        network: holds the plan's decisions, on any device.
        batches: inputs of the network, with labels (N) where the task has classes; those that fit are taken.
        original: a float model as its authors' code builds it; None for a copy of the network's float model.

    Raises:
        SbsError: there are no samples, the network does not take them, or an output cannot be compared: its size
            depends on values, it belongs to no sample, or it is not finite.
    """
    inputs, outputs = specs_of(plan)
    for spec in inputs:
        if spec.shape and isinstance(spec.shape[0], str) and spec.shape[0] != batch_axis(inputs):
            raise SbsError(
                f"input {spec.name} has an axis 0 of its own, {spec.shape[0]}, beside that of the samples, so samples "
                "cannot be told apart: give the axis a fixed size"
            )
    device = next(network.model.parameters()).device
    taken: list[Example] = []
    labels: list[Tensor | None] = []
    wanted, output_bytes = SAMPLES, 0
    with torch.no_grad():
        for example, classes in batches:
            if not example.samples:
                raise SbsError("a golden batch holds no samples; give one or more")
            if any(not tensor.isfinite().all() for tensor in example.tensors):
                raise SbsError("golden samples are not finite; give inputs such as the network will get")
            if not taken:
                input_bytes, output_bytes = _bytes(network.model, example.first(2).to(device), outputs)
                wanted = _fitting(SAMPLES, input_bytes + output_bytes)
            taken.append(example.first(wanted - sum(one.samples for one in taken)).to(device))
            if classes is not None and (classes.dim() != 1 or classes.is_floating_point()):
                classes = None  # something else than a class of each sample
            labels.append(None if classes is None else classes[: taken[-1].samples])
            if sum(one.samples for one in taken) >= wanted:
                break
        if not taken:
            raise SbsError("there are no golden samples: give one batch of inputs or more")
        answers = _answers(network.model, taken, outputs)
        _check_outputs(answers, outputs, [example.samples for example in taken])
        _check_whole(network.model, taken[0], answers[0], outputs)
        exact = Arrays()
        if exact_dtype(network.model, network.example) == torch.float64:
            some = [example.to(torch.float64) for example in _first(taken, _fitting(EXACT_SAMPLES, 2 * output_bytes))]
            exact = _joined(_answers(copy.deepcopy(network.model).double(), some, outputs), outputs)
        few = _first(taken, _fitting(FLOAT_SAMPLES, 3 * output_bytes))
        plain, plain32 = float_arrays(network, original, few, outputs)
        taps = _taps(network, plan, taken[0])
    known = [one.cpu() for one in labels if one is not None]
    return GoldenArrays(
        input_specs=inputs,
        output_specs=outputs,
        inputs=_inputs(network.model, taken, inputs),
        outputs=_joined(answers, outputs),
        exact=exact,
        plain=plain,
        plain32=plain32,
        taps=taps,
        labels=torch.cat(known).numpy() if len(known) == len(labels) else None,
    )


@torch.no_grad()
def float_arrays(
    network: Network, original: nn.Module | None, examples: Sequence[Example], outputs: Sequence[ArraySpec]
) -> tuple[Arrays, Arrays]:
    """Outputs of the original float model with the trained weights, quantized and masked; no input is quantized.

    No compression code takes part, so a comparison shows its mistakes: in the quantized network, in the slim network,
    and in the exported files.

    Returns:
        The outputs in float64, if the network can compute in float64, and in float32; their difference is rounding.
    """
    model = (plain_copy(network.model) if original is None else original).eval()
    model.to(next(network.model.parameters()).device)
    # By tensor, not by name: a module may have two names.
    weights = {layer.weight: layer.quantized_weight() for layer in network.layers.values()}
    trained = network.model.state_dict(keep_vars=True)
    load_state(model, {name: weights.get(trained[name], trained[name]) for name in model.state_dict()})
    single = _joined(_answers(model, examples, outputs), outputs)
    if exact_dtype(model, network.example) == torch.float64:
        double = [example.to(torch.float64) for example in examples]
        exact = _joined(_answers(copy.deepcopy(model).double(), double, outputs), outputs)
    else:
        nudged = [example.map(lambda x: x * (1 + NUDGE) if x.is_floating_point() else x) for example in examples]
        exact = _joined(_answers(model, nudged, outputs), outputs)
    return {name: one.astype(np.float64) if one.dtype.kind == "f" else one for name, one in exact.items()}, single


@torch.no_grad()
def tapped(network: Network, plan: Plan, example: Example) -> dict[str, Tensor]:
    """Outputs of all calls of layers, BatchNorm included, kept channels only, in the order in which they run."""
    batchnorm_of = network.batchnorms
    # What a BatchNorm with an activation inside writes is not what the folded layer writes.
    plain = {name for name, norm in batchnorm_of.items() if type(network.model.get_submodule(norm)) in BATCHNORMS}
    rows = [row for row in plan.layers if row.name not in batchnorm_of or row.name in plain]
    taps, calls = dict[str, Tensor](), Counter[str]()

    def keep(name: str, output: Tensor) -> None:
        layer = plan.layer(name)
        kept = torch.tensor(plan.group(layer.group_out).kept, device=output.device)
        axis = -1 if layer.kind == "linear" else 1  # a linear layer may stand in an (N, H, W, C) network
        # A copy: an in-place activation may follow.
        taps[call_name(name, calls[name])] = output.index_select(axis, kept).clone()
        calls[name] += 1

    hooks = [
        network.model.get_submodule(batchnorm_of.get(row.name, row.name)).register_forward_hook(
            lambda m, x, y, n=row.name: keep(n, y)
        )
        for row in rows
    ]
    example.run(network.model)
    for hook in hooks:
        hook.remove()
    return taps


def _bytes(model: nn.Module, example: Example, outputs: Sequence[ArraySpec]) -> tuple[int, int]:
    """Bytes of a sample's inputs and of its outputs."""
    (answer,) = _answers(model, [example], outputs)
    inputs = sum(tensor.nbytes for tensor in example.tensors)
    return inputs // example.samples, sum(array.nbytes for array in answer.values()) // example.samples


def _fitting(samples: int, sample_bytes: int) -> int:
    """How many of the samples fit into BYTES."""
    return max(TAP_SAMPLES, min(samples, BYTES // max(sample_bytes, 1)))


def _taps(network: Network, plan: Plan, example: Example) -> Arrays:
    """Outputs of layers for the first samples; of a network whose layers write much, of its first layers alone."""
    one = sum(tap.nbytes for tap in tapped(network, plan, example.first(1)).values())
    samples = max(1, min(TAP_SAMPLES, BYTES // max(one, 1)))
    left, found = BYTES, Arrays()
    for name, tap in tapped(network, plan, example.first(samples)).items():
        left -= tap.nbytes
        if left < 0 and found:
            break
        found[name] = tap.cpu().numpy()
    return found


def _first(examples: Sequence[Example], samples: int) -> list[Example]:
    """The first samples, at most BATCH at a time."""
    found: list[Example] = []
    for example in examples:
        count = example.samples
        for start in range(0, min(count, samples), BATCH):
            end = min(start + BATCH, count, samples)
            found.append(example.map(partial(_rows, start=start, end=end, samples=count)))
        samples -= min(count, samples)
    return found


def _rows(tensor: Tensor, *, start: int, end: int, samples: int) -> Tensor:
    return tensor[start:end] if tensor.dim() and len(tensor) == samples else tensor


def _answers(model: nn.Module, examples: Sequence[Example], outputs: Sequence[ArraySpec]) -> list[Arrays]:
    """Outputs of every example, by name."""
    found = []
    for example in examples:
        try:
            tensors = named_outputs(example.run(model)).values()
        except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise SbsError(f"the network does not run on the golden samples: {reason}") from error
        arrays = [tensor.detach().cpu().numpy() for tensor in tensors]
        if len(arrays) != len(outputs):
            raise SbsError(f"the network returns {len(arrays)} tensors, the plan has {len(outputs)}")
        found.append({spec.name: array for spec, array in zip(outputs, arrays, strict=True)})
    return found


def _inputs(model: nn.Module, examples: Sequence[Example], specs: Sequence[ArraySpec]) -> Arrays:
    """The inputs of all examples, by name."""
    parts = []
    for example in examples:
        arrays = [tensor.detach().cpu().numpy() for tensor in example.named(model).values()]
        if len(arrays) != len(specs):
            raise SbsError(f"golden samples have {len(arrays)} tensors; the network takes {described(specs)}")
        named = {spec.name: array for spec, array in zip(specs, arrays, strict=True)}
        parts.append(checked(named, specs, "golden samples do not fit: the network"))
    if unlike := next((name for name in parts[0] if not _joinable(parts, name, per_sample(specs))), None):
        raise SbsError(
            f"golden samples have {unlike} in several sizes, or with several values though it has no axis of samples; "
            "give batches that are alike"
        )
    return joined(parts, per_sample(specs))


def _joinable(parts: Sequence[Arrays], name: str, names: Collection[str]) -> bool:
    head = parts[0][name]
    if name in names:
        return all(part[name].shape[1:] == head.shape[1:] for part in parts)
    return all(np.array_equal(part[name], head) for part in parts)


def _joined(parts: Sequence[Arrays], outputs: Sequence[ArraySpec]) -> Arrays:
    return joined(parts, growing(outputs))


def _check_outputs(answers: Sequence[Arrays], outputs: Sequence[ArraySpec], samples: Sequence[int]) -> None:
    """SbsError for an output whose size depends on values, or that is not finite."""
    for spec in outputs:
        shapes = [answer[spec.name].shape for answer in answers]
        rows = {
            shape[0] / count if spec.name in growing(outputs) else 1
            for shape, count in zip(shapes, samples, strict=True)
        }
        fits = len({shape[1:] for shape in shapes}) == 1 and len(rows) == 1 and float(next(iter(rows))).is_integer()
        fits = fits and len(shapes[0]) == len(spec.shape)
        if not fits or any(
            isinstance(want, int) and size != want for size, want in zip(shapes[0], spec.shape, strict=True)
        ):
            raise SbsError(
                f"output {described([spec])} of the network is {shapes[0]} for {samples[0]} samples: its size depends "
                "on the values, as behind a non-maximum suppression; export the network without that step"
            )
        if not all(np.isfinite(answer[spec.name]).all() for answer in answers):
            raise SbsError(
                f"output {spec.name} is not finite on the golden samples, so nothing can be compared with it"
            )


def _check_whole(model: nn.Module, example: Example, answer: Arrays, outputs: Sequence[ArraySpec]) -> None:
    """SbsError for an output without an axis of samples that depends on which samples there are."""
    fixed = [spec.name for spec in outputs if spec.name not in growing(outputs)]
    if not fixed or example.samples < 2:
        return
    (one,) = _answers(model, [example.first(1)], outputs)
    for name in fixed:
        if one[name].shape != answer[name].shape or not np.allclose(one[name], answer[name], rtol=1e-3, atol=1e-5):
            raise SbsError(
                f"output {name} has no axis of samples and depends on the samples: return a value for each sample, or "
                "leave it out of what is exported"
            )
