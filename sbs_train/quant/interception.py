"""Additions in somebody's `forward`, intercepted while a model runs.

An addition is known by its place: the module that computes it, the number of the module's call in the pass, and the
number of the addition in that call. So a branch that runs in training alone, or a block that is skipped now and then,
leaves the others where they are.
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
    """Where a forward pass adds."""

    module: str
    """Name of the innermost module; empty for the model itself."""
    call: int
    """Calls of that module before this one, in the same pass."""
    number: int
    """Additions before this one, in the same call."""

    @property
    def name(self) -> str:
        """For people, and for the graph's tensor; no tensor that comes from a parameter is called so."""
        call = f"{self.call}." if self.call else ""
        return f"{self.module}+{call}{self.number}"


Handler = Callable[[Place, Tensor, Tensor], tuple[Tensor, Tensor]]
"""An addition's place and operands to the operands that are added instead."""

_IN_PLACE = frozenset((torch.Tensor.add_, torch.Tensor.__iadd__))
_ADDITIONS = _IN_PLACE | {torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__}


@dataclass
class Interceptor:
    """Hands the operands of every addition of two feature maps to `handler`, in every pass of the models it is on."""

    handler: Handler
    places: Collection[Place] | None = None
    """Those that are intercepted; None for all."""
    active: Callable[[], bool] = lambda: True
    """Asked when a pass starts."""
    copies: bool = True
    """Whether the handler gets a copy of what is added to in place: autograd may keep what it gets."""
    passes: list["_Pass"] = field(default_factory=list)
    """Those that run now."""

    def install(self, model: nn.Module) -> list[RemovableHandle]:
        """From now on, and on copies of the model too."""
        handles = []
        for name, module in model.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):  # it takes no hooks, and hides what it adds
                handles.append(module.register_forward_pre_hook(_Enter(self, name)))
                handles.append(module.register_forward_hook(_Leave(self, name), always_call=True))
        return handles


def uninstall(model: nn.Module) -> bool:
    """Remove every `Interceptor` from a model; returns whether there was one."""
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
        # All are counted, whatever their shapes: those may depend on how many samples there are.
        scope = self.scopes[-1]
        place = Place(*scope, self.added[scope])
        self.added[scope] += 1
        wanted = self.interceptor.places is None or place in self.interceptor.places
        lhs, rhs, alpha, out = _operands(*args, **kwargs)
        if not wanted or not _are_feature_maps(lhs, rhs):
            return func(*args, **kwargs)
        in_place = func in _IN_PLACE
        # Torch itself disables this inside: what a handler adds is not intercepted again.
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
    """Left, right, what the right one is multiplied by, and where the sum goes."""
    named = {**dict(zip(("input", "other"), args, strict=False)), **kwargs}
    return named.get("input"), named.get("other"), named.get("alpha", 1), named.get("out")


def _are_feature_maps(lhs: Any, rhs: Any) -> bool:
    tensors = isinstance(lhs, Tensor) and isinstance(rhs, Tensor)
    if not tensors or isinstance(lhs, nn.Parameter) or isinstance(rhs, nn.Parameter):
        return False
    # Under autocast the two may differ in type.
    floats = lhs.is_floating_point() and rhs.is_floating_point()
    return bool(floats and lhs.dim() >= 3 and lhs.shape == rhs.shape)
