"""Intercept additions in a model's `forward` while the model runs.

An addition is known by its place: the module that computes it, the number of the module's call in the pass, and the
number of the addition in that call. So a branch that runs in training only, or a block that is sometimes skipped,
does not change the places of other additions.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle


class Place(NamedTuple):
    """Place of an addition in a forward pass."""

    module: str
    """Name of the innermost module; empty for the model itself."""
    call: int
    """Number of earlier calls of the module in the pass."""
    number: int
    """Number of earlier additions in the module's call."""

    @property
    def name(self) -> str:
        """Name for people and for the graph's tensor; no parameter's tensor has such a name."""
        call = f"{self.call}." if self.call else ""
        return f"{self.module}+{call}{self.number}"


Handler = Callable[[Place, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Takes an addition's place and operands, and returns the operands to add instead."""

_IN_PLACE = frozenset((torch.Tensor.add_, torch.Tensor.__iadd__))
_ADDITIONS = _IN_PLACE | {torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__}


@dataclass
class Interceptor:
    """Passes the operands of every addition of two feature maps to `handler`, in the models it is installed on."""

    handler: Handler
    places: Collection[Place] | None = None
    """Places of the additions to intercept; None for all."""
    active: Callable[[], bool] = lambda: True
    """Called at the start of a pass; False switches the interception off for the pass."""
    copies: bool = True
    """Whether the handler gets a copy of the left operand of an in-place addition: autograd may keep the operand."""
    passes: list["_Pass"] = field(default_factory=list)
    """Forward passes that run now."""

    def install(self, model: nn.Module) -> list[RemovableHandle]:
        """Intercept the additions of a model and of its later copies from now on."""
        handles = []
        for name, module in model.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):  # a ScriptModule takes no hooks and hides its additions
                handles.append(module.register_forward_pre_hook(_Enter(self, name)))
                handles.append(module.register_forward_hook(_Leave(self, name), always_call=True))
        return handles


def uninstall(model: nn.Module) -> bool:
    """Remove every `Interceptor` from a model; returns whether the model had one."""
    found = False
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [key for key, hook in hooks.items() if isinstance(hook, _Enter | _Leave)]:
                found = True
                del hooks[key]
                module._forward_hooks_always_called.pop(key, None)
    return found


@contextmanager
def intercept_additions(
    model: nn.Module, handler: Handler, places: Collection[Place] | None = None, *, copies: bool = True
) -> Iterator[None]:
    """An `Interceptor` on a model, inside a `with` block."""
    handles = Interceptor(handler, places, copies=copies).install(model)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Pass(TorchFunctionMode):
    """One forward pass."""

    def __init__(self, interceptor: Interceptor) -> None:
        super().__init__()
        self.interceptor = interceptor
        self.scopes: list[tuple[str, int]] = []
        self.calls: Counter[str] = Counter()
        self.added: Counter[tuple[str, int]] = Counter()

    def enter(self, module: str) -> None:
        self.scopes.append((module, self.calls[module]))
        self.calls[module] += 1

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _ADDITIONS or not self.scopes or self.interceptor.passes[-1] is not self:
            return func(*args, **kwargs)
        # Additions of all shapes are counted: shapes may depend on the number of samples.
        scope = self.scopes[-1]
        place = Place(*scope, self.added[scope])
        self.added[scope] += 1
        wanted = self.interceptor.places is None or place in self.interceptor.places
        lhs, rhs, alpha, out = _operands(*args, **kwargs)
        if not wanted or not _are_feature_maps(lhs, rhs):
            return func(*args, **kwargs)
        in_place = func in _IN_PLACE
        # Torch disables the mode inside: additions of a handler are not intercepted.
        operands = self.interceptor.handler(
            place,
            lhs.clone() if in_place and self.interceptor.copies else lhs,
            rhs if alpha == 1 else rhs * alpha,
        )
        if in_place:
            return lhs.copy_(torch.add(*operands))
        return torch.add(*operands) if out is None else torch.add(*operands, out=out)


@dataclass
class _Enter:
    interceptor: Interceptor
    module: str

    def __call__(self, module: nn.Module, args: Any) -> None:
        passes = self.interceptor.passes
        if not self.module and self.interceptor.active():
            passes.append(_Pass(self.interceptor))
            passes[-1].__enter__()  # type: ignore[no-untyped-call]  # torch does not annotate it
        if passes:
            passes[-1].enter(self.module)


@dataclass
class _Leave:
    interceptor: Interceptor
    module: str

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if not self.interceptor.passes:
            return
        if self.module:
            self.interceptor.passes[-1].scopes.pop()
        else:
            self.interceptor.passes.pop().__exit__(None, None, None)  # type: ignore[no-untyped-call]


def _operands(*args: Any, **kwargs: Any) -> tuple[Any, Any, Any, Any]:
    """(left, right, alpha, out) of an addition: the sum is left + alpha * right, written to `out` if given."""
    named = {**dict(zip(("input", "other"), args, strict=False)), **kwargs}
    return named.get("input"), named.get("other"), named.get("alpha", 1), named.get("out")


def _are_feature_maps(lhs: Any, rhs: Any) -> bool:
    tensors = isinstance(lhs, Tensor) and isinstance(rhs, Tensor)
    if not tensors or isinstance(lhs, nn.Parameter) or isinstance(rhs, nn.Parameter):
        return False
    # Under autocast the two may differ in type.
    floats = lhs.is_floating_point() and rhs.is_floating_point()
    return bool(floats and lhs.dim() >= 3 and lhs.shape == rhs.shape)
