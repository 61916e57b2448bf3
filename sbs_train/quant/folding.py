"""The float network inside a network of SBS layers, and folding of BatchNorm into its layers.

Shapes: O output channels; `folded_affine` gives factor_O and bias_O of `factor_O * (W x) + bias_O`.
"""

import copy
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from calib.calls import argument
from sbs_train.example import Example
from sbs_train.quant.adds import uninstall_adds
from sbs_train.quant.clamping import uninstall_clamping
from sbs_train.quant.kinds import SBSFollower
from sbs_train.quant.layers import KINDS, STATE, SBSLayer, outputs_first

SCALE_MIN = 1e-8
"""Smallest weight scale after folding, but for tiny weights: TensorRT refuses 0, the scale of a dead channel."""

BATCHNORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy with float layers in place of SBS layers and without quantizers, in eval mode."""
    model = copy.deepcopy(model)
    make_plain(model)
    return model.eval().requires_grad_(True)  # torch-pruning follows the autograd graph


def make_plain(model: nn.Module) -> None:
    """Turn SBS layers back into float layers and take all quantizers out, in place."""
    uninstall_adds(model)
    uninstall_clamping(model)
    for module in list(model.modules()):
        if isinstance(module, SBSLayer):
            _unswap(module)
        elif isinstance(module, SBSFollower):
            del module.leader
            module.__class__ = type(module).plain  # type: ignore[assignment]


def _unswap(layer: SBSLayer) -> None:
    for own in (layer._parameters, layer._buffers):
        for name in STATE.intersection(own):
            del own[name]
    layer._non_persistent_buffers_set -= STATE
    layer.__class__ = type(layer).plain  # type: ignore[assignment]


@torch.no_grad()
def paired_batchnorms(model: nn.Module, example: Example) -> dict[str, str]:
    """By layer, the BatchNorm that alone reads the layer's output, in every call; `model` is in eval mode.

    The BatchNorm may be of a subclass that does more, such as timm's, which also apply the activation. A layer that
    shares its weights keeps its BatchNorm: the other layer has none, or another.
    """
    written: dict[str, list[Tensor]] = {}
    read: dict[str, list[Tensor]] = {}

    def note(seen: dict[str, list[Tensor]], name: str, tensor: Tensor) -> None:
        seen.setdefault(name, []).append(tensor)

    hooks = []
    owners = Counter(id(m.weight) for m in model.modules() if isinstance(m, KINDS))
    for name, module in model.named_modules():
        if isinstance(module, KINDS) and owners[id(module.weight)] == 1:
            # Before all other hooks, which may replace the layer's output.
            hooks.append(module.register_forward_hook(lambda m, x, y, n=name: note(written, n, y), prepend=True))
        elif isinstance(module, BATCHNORMS) and module.track_running_stats:
            hook = module.register_forward_pre_hook(
                lambda m, x, k, n=name: note(read, n, argument(x, k)), with_kwargs=True
            )
            hooks.append(hook)
    uses = _Uses()
    try:
        with uses:
            output = example.run(model)
    finally:
        for hook in hooks:
            hook.remove()
    outputs = {id(leaf) for leaf in tree_leaves(output)}
    norm_of = {id(tensor): name for name, tensors in read.items() for tensor in tensors}
    found = {layer: norm_of.get(id(tensors[0]), "") for layer, tensors in written.items()}
    return {
        layer: found[layer]
        for layer, tensors in written.items()
        if found[layer]
        and [id(tensor) for tensor in tensors] == [id(tensor) for tensor in read[found[layer]]]
        and all(id(tensor) not in outputs and uses.of(tensor) == 1 for tensor in tensors)
    }


class _Uses(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not annotate it
    """Counts how often a forward pass reads, views or changes each tensor."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[int] = Counter()
        self.kept: list[Any] = []
        """Keeps tensors alive, so that no other tensor gets the same id."""

    def of(self, tensor: Tensor) -> int:
        return self.counts[id(tensor)]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = {id(leaf): leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        self.counts.update(tensors.keys())
        self.kept.extend(tensors.values())
        return func(*args, **(kwargs or {}))


def folded_affine(layer: nn.Module, norm: nn.Module | None) -> tuple[Tensor, Tensor]:
    """(factor_O, bias_O) in double: layer and BatchNorm give `factor_O * (W x) + bias_O`."""
    parameters = dict(layer.named_parameters(recurse=False))
    zero_O = torch.zeros(len(outputs_first(layer)), dtype=torch.float64, device=parameters["weight"].device)
    own_O = parameters["bias"].double() if "bias" in parameters else zero_O
    if norm is None:
        return zero_O + 1, own_O
    assert isinstance(norm, BATCHNORMS)
    assert norm.running_mean is not None and norm.running_var is not None
    factor_O = 1 / torch.sqrt(norm.running_var.double() + norm.eps)
    factor_O = factor_O * norm.weight.double() if norm.affine else factor_O
    beta_O = norm.bias.double() if norm.affine else zero_O
    return factor_O, beta_O + factor_O * (own_O - norm.running_mean.double())


def folded_scale(factor_O: Tensor, step_w: float) -> Tensor:
    """`scale_O` of a folded layer's codes, above zero for every channel; `step_w` is the step before folding."""
    return (factor_O.abs() * step_w).clamp_min(min(SCALE_MIN, step_w / 100))


@torch.no_grad()
def remove_batchnorm(norm: nn.Module) -> None:
    """Reduce a folded BatchNorm to an identity (or to its activation), in place, as it may have several names."""
    assert isinstance(norm, BATCHNORMS)
    if type(norm) in BATCHNORMS:
        norm._parameters.clear()
        norm._buffers.clear()
        norm.__class__ = nn.Identity  # type: ignore[assignment]  # its hooks stay
        return
    # The BatchNorm then divides by sqrt(1 + 0) and adds 0: exactly the identity, even if folded again.
    assert norm.running_mean is not None and norm.running_var is not None
    norm.eps = 0.0
    norm.running_mean.zero_()
    norm.running_var.fill_(1)
    if norm.affine:
        norm.weight.fill_(1)
        norm.bias.zero_()
