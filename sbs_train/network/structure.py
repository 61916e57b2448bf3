"""Which layers and additions are quantized, and which BatchNorms are folded, decided before training. Every decision is
tried on a copy, and parts that fail stay in float.

The trial switches all quantizers to identity: layers are swapped, additions intercepted and gradients computed as in
training, but nothing is rounded. The copy then has to compute the float network's outputs, in both modes.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from sbs_train.contract.cost import INT8_BITS
from sbs_train.contract.grid import make_grid
from sbs_train.contract.limits import ADDITION_FAILS, KEPT_IN_FLOAT, LAYER_FAILS, OWN_STATE
from sbs_train.contract.plan import FLOAT_BITS
from sbs_train.example import Example, floats_of
from sbs_train.network.channels import Reach, Topology, topology_of
from sbs_train.network.trial import equal, failing, shaken
from sbs_train.quant.adds import Addition, ResidualAdds, additions_of
from sbs_train.quant.folding import folded_affine, paired_batchnorms, remove_batchnorm
from sbs_train.quant.layers import KINDS, STATE, outputs_first
from sbs_train.quant.quantizer import Kernels
from sbs_train.quant.swapping import has_parents_forward, swap_layers

TOLERANCE = 1e-3
"""Largest error, as a part of the largest output: above float32 rounding, below a lost addition or a wrong fold."""


@dataclass(frozen=True, kw_only=True)
class Structure:
    """Topology of a network, its additions and its folded BatchNorms."""

    topology: Topology
    additions: list[Addition]
    """All additions of two feature maps, in the order in which they run; `float_reason` says why one stays in float."""
    batchnorms: dict[str, str]
    """The BatchNorm that the export folds into a layer, by the layer's name."""

    @property
    def quantized_additions(self) -> list[Addition]:
        """Additions that can be quantized."""
        return [addition for addition in self.additions if not addition.float_reason]


def structure_of(
    model: nn.Module,
    example: Example,
    reach: Reach = "inside",
    *,
    pair: bool = True,
    kept: Mapping[str, int] | None = None,
) -> Structure:
    """Trace `model` and try every change on copies; the model does not change.

    Args:
        pair: whether an addition may take the clip value of a layer that reads its operand.
        kept: layers that stay whole, with their bits; 32 bits stay in float.

    Raises:
        SbsError: the model cannot run the example, runs no layer, or makes layers as it runs.
    """
    known = {name: module for name, module in model.named_modules() if isinstance(module, KINDS)}
    own = {name: [state for state in sorted(STATE) if hasattr(module, state)] for name, module in known.items()}
    layers = {name: OWN_STATE.format(name=states[0]) for name, states in own.items() if states}
    kept = kept or {}
    layers |= {name: KEPT_IN_FLOAT for name, bits in kept.items() if bits == FLOAT_BITS}
    topology = topology_of(model, example, reach, in_float=layers, whole=kept)
    tried = shaken(model, example)
    traced = copy.deepcopy(tried)  # some networks keep tensors of a run with gradients
    readers = {name: traced.get_submodule(name) for name in topology.quantizable} if pair else None
    additions = additions_of(traced, example, readers)
    trial = _Trial(tried, example, {name: layer.calls for name, layer in topology.layers.items()})
    parts: list[str | Addition] = [*topology.quantizable, *(a for a in additions if not a.float_reason)]
    wrong_parts = failing(parts, trial.is_identity)
    layers |= {part: LAYER_FAILS for part in wrong_parts if isinstance(part, str)}
    if any(isinstance(part, str) for part in wrong_parts):
        topology = topology_of(model, example, reach, in_float=layers, whole=kept)
    additions = [replace(a, float_reason=ADDITION_FAILS) if a in wrong_parts else a for a in additions]
    pairs = paired_batchnorms(tried, example)
    wrong = failing([name for name in pairs if name in topology.quantizable], lambda names: trial.folds(names, pairs))
    return Structure(
        topology=topology,
        additions=[_without(a, layers) for a in additions],
        batchnorms={
            name: norm
            for name, norm in pairs.items()
            if name not in wrong and (name in topology.quantizable or has_parents_forward(known[name]))
        },
    )


def _without(addition: Addition, layers: Mapping[str, str]) -> Addition:
    lhs, rhs = (None if name in layers else name for name in addition.readers)
    return replace(addition, readers=(lhs, rhs))


class _Trial:
    """A float network in eval mode, its floating outputs, and changed copies whose outputs have to be equal."""

    def __init__(self, model: nn.Module, example: Example, calls: Mapping[str, int]) -> None:
        self.model = model
        self.x, self.calls = example.random(2), calls
        with torch.no_grad():
            self.expected = floats_of(self.x.run(copy.deepcopy(model)))
        first, second = (self._trained(copy.deepcopy(model)) for _ in range(2))
        # A network with other sources of random numbers gives changing answers in training.
        self.trained = first if first is not None and second is not None and equal(first, second, TOLERANCE) else None

    def is_identity(self, parts: Sequence[str | Addition]) -> bool:
        """Whether the network computes as in float with identity quantizers on these layers and additions."""
        model, ran = copy.deepcopy(self.model), Counter[str]()
        try:
            layers = swap_layers(model, {part for part in parts if isinstance(part, str)})
        except TypeError:  # a class that cannot be extended
            return False
        for name, layer in layers.items():
            layer.set_grids(make_grid("weight", (INT8_BITS,)), make_grid("signed", (INT8_BITS,)))
            layer.kernels = _identity(partial(ran.update, [name]))
        additions = [part for part in parts if isinstance(part, Addition)]
        adds = ResidualAdds(additions)
        adds.install(model)
        adds.enable([(True, True)] * len(additions))
        adds.kernels = _identity(lambda: None)
        try:
            with torch.no_grad():
                found = floats_of(self.x.run(model))
        except Exception:  # noqa: BLE001  any exception shows that these parts are not safe
            return False
        # Twice a call: once for the input, once for the weights.
        if not equal(found, self.expected, TOLERANCE) or any(ran[name] != 2 * self.calls[name] for name in layers):
            return False
        return self.trained is None or equal(self._trained(model), self.trained, TOLERANCE)

    @torch.no_grad()
    def folds(self, names: Sequence[str], batchnorms: Mapping[str, str]) -> bool:
        """Whether these layers compute the same with their BatchNorms folded."""
        model = copy.deepcopy(self.model)
        try:
            for name in names:
                layer, norm = model.get_submodule(name), model.get_submodule(batchnorms[name])
                fold(layer, norm)
            found = floats_of(self.x.run(model))
        except Exception:  # noqa: BLE001  any exception shows that the change is not safe
            return False
        return equal(found, self.expected, TOLERANCE)

    def _trained(self, model: nn.Module) -> list[Tensor] | None:
        """The network's outputs in training mode, after a backward pass; None if a pass fails."""
        with _seeded(), torch.enable_grad():
            try:
                found = floats_of(self.x.run(model.train()))
                followed = [y.float().square().mean() for y in found if y.requires_grad]
                torch.stack(followed).sum().backward()  # type: ignore[no-untyped-call]
            except Exception:  # noqa: BLE001  any exception shows that the change is not safe
                return None
        return [y.detach() for y in found]


def fold(layer: nn.Module, norm: nn.Module) -> None:
    """Fold the BatchNorm behind a layer into the layer, in place and in float."""
    factor_O, bias_O = folded_affine(layer, norm)
    weight = outputs_first(layer)
    weight.mul_(factor_O.to(weight).view(-1, *[1] * (weight.dim() - 1)))
    layer.bias = nn.Parameter(bias_O.to(weight.dtype))
    remove_batchnorm(norm)


def _identity(called: Callable[[], None]) -> Kernels:
    """Kernels of quantizers that round nothing but keep the same tensors for the backward pass."""

    def forward(x: Tensor, clip: Tensor, row_4: Tensor) -> Tensor:
        called()
        return x.clone()

    def backward(grad: Tensor, x: Tensor, quantized: Tensor, clip: Tensor, row_4: Tensor) -> tuple[Tensor, Tensor]:
        return grad, torch.zeros_like(clip)

    def level_sums(grad: Tensor, x: Tensor, clip_K: Tensor, table_K4: Tensor) -> Tensor:
        return torch.zeros_like(clip_K)

    return Kernels(forward=forward, backward=backward, level_sums=level_sums)


@contextmanager
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
