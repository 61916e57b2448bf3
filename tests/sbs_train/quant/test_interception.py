"""Additions, however they are written, are intercepted where they are and change nothing of themselves."""

import copy
import operator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sbs_train.contract.limits import WITHOUT_GRADIENTS
from sbs_train.example import Example
from sbs_train.quant.adds import additions_of
from sbs_train.quant.interception import Place, intercept_additions


def _slice(a, b):
    a[:, :2] += b[:, 2:]
    return a


def _view(a, b):
    a.view(a.shape[0], -1, a.shape[-1]).add_(b.reshape(b.shape[0], -1, b.shape[-1]))
    return a


def _statement(a, b):
    a.add_(b)
    return a


def _augmented(a, b):
    a += b
    return a


def _out(a, b):
    return a + b if torch.is_grad_enabled() else torch.add(a, b, out=torch.empty_like(a))


def _discarded(a, b):
    a + b
    return a * 2


WAYS = {
    "plus": lambda a, b: a + b,
    "statement": _statement,
    "augmented": _augmented,
    "iadd": operator.iadd,
    "torch": torch.add,
    "keywords": lambda a, b: torch.add(input=a, other=b),
    "alpha": lambda a, b: torch.add(a, b, alpha=0.2),
    "in place, alpha": lambda a, b: a.add_(b, alpha=-0.5),
    "out": _out,
    "slice": _slice,
    "view": _view,
    "sum": lambda a, b: sum([a, b]),
    "reflected": lambda a, b: a.__radd__(b),
    "itself": lambda a, b: a + a,
    "discarded": _discarded,
    "FloatFunctional": lambda a, b: torch.ao.nn.quantized.FloatFunctional().add(a, b),
}
OTHERS = {
    "difference": lambda a, b: a - b,
    "number": lambda a, b: a + 1.5,
    "broadcast": lambda a, b: a + b.mean((2, 3), keepdim=True),
    "mask": lambda a, b: a + (b > 0),
    "addcmul": lambda a, b: torch.addcmul(a, a, b),
    "lerp": lambda a, b: torch.lerp(a, b, 0.3),
}


class Adder(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.way = way

    def forward(self, a, b):
        return (WAYS | OTHERS)[self.way](a, b)


class Chain(nn.Module):
    """Layers, each followed by an addition of what it read; some of the modules that add run several times."""

    def __init__(self, ways, shared):
        super().__init__()
        torch.manual_seed(len(ways))
        adders = {way: Adder(way) for way in ways}
        self.adders = nn.ModuleList([adders[way] if shared else Adder(way) for way in ways])
        self.layers = nn.ModuleList([nn.Conv2d(4, 4, 3, padding=1) for _ in ways])

    def forward(self, x):
        for layer, adder in zip(self.layers, self.adders, strict=True):
            x = adder(layer(x), x)
        return x


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from([*WAYS, *OTHERS]), min_size=1, max_size=5), st.booleans())
def test_interception_alone_changes_nothing(ways, shared):
    model, x = Chain(ways, shared), torch.randn(2, 4, 5, 5)
    results = []
    for intercepted in (False, True):
        one, image = copy.deepcopy(model), x.clone().requires_grad_()
        seen: list[Place] = []
        if intercepted:
            with intercept_additions(one, lambda place, a, b, s=seen: s.append(place) or (a * 1, b * 1)):
                y = one(image)
        else:
            y = one(image)
        y.square().sum().backward()
        with torch.no_grad():
            again = one(x)
        results.append([y.detach(), again, image.grad, *(p.grad for p in one.parameters())])
    for found, expected in zip(*reversed(results), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    assert len(seen) == len(set(seen)) == sum(way in WAYS for way in ways)


@pytest.mark.parametrize("way", sorted(set(WAYS) - {"discarded", "itself", "slice"}))
def test_the_handler_decides_what_is_added(way):
    model, alpha = Adder(way), {"alpha": 0.2, "in place, alpha": -0.5}.get(way, 1)

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.adder = model

        def forward(self, x):
            a = x * 3
            kept = a
            y = self.adder(a, x)
            return y, kept

    x = torch.randn(2, 4, 5, 5)
    whole = Whole()
    with torch.no_grad(), intercept_additions(whole, lambda place, a, b: (10 * a, 100 * b)):
        y, kept = whole(x)
    torch.testing.assert_close(y, 30 * x + 100 * alpha * x)
    in_place = way in ("statement", "augmented", "iadd", "in place, alpha", "view")
    torch.testing.assert_close(kept, y if in_place else 3 * x)  # what another name of the tensor reads


class Branches(nn.Module):
    """One branch in training alone; a sum that looks like one of feature maps for a single sample."""

    def __init__(self):
        super().__init__()
        self.aux, self.main = Adder("plus"), Adder("plus")
        self.register_buffer("position", torch.randn(1, 4, 5, 5))

    def forward(self, x):
        x = x + self.position
        if self.training:
            self.aux(x, x)
            with torch.no_grad():
                x.detach() + x.detach()
        return self.main(x, x) + x.relu()


def test_places_do_not_move_with_branches_nor_with_the_number_of_samples():
    model = Branches()
    found = {a.place for a in additions_of(model.eval(), Example.of(torch.randn(2, 4, 5, 5)))}
    assert found == {Place("main", 0, 0), Place("", 0, 1)}
    seen = []
    for training, samples in ((False, 1), (False, 2)):
        with intercept_additions(model.train(training), lambda p, a, b: seen.append(p) or (a, b), found):
            model(torch.randn(samples, 4, 5, 5))
    assert seen == [Place("main", 0, 0), Place("", 0, 1)] * 2
    assert {p.name for p in found} == {"main+0", "+1"}


def test_what_runs_without_gradients_stays_in_float():
    model = Branches().train()
    reasons = [a.float_reason for a in additions_of(model, Example.of(torch.randn(2, 4, 5, 5))) if a.float_reason]
    assert reasons == [WITHOUT_GRADIENTS]


def test_scripted_modules_are_left_alone_and_traced_ones_are_not():
    class Sum(nn.Module):
        def forward(self, a, b):
            return a + b

    class Whole(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x, x.relu())

    x = torch.randn(2, 4, 5, 5)
    with pytest.warns(FutureWarning):
        scripted = torch.jit.script(Sum())
    assert additions_of(Whole(scripted), Example.of(x)) == []
    assert len(additions_of(Whole(torch.fx.symbolic_trace(Sum())), Example.of(x))) == 1


def test_an_error_that_the_network_catches_does_not_move_places():
    class Fails(nn.Module):
        def forward(self, x):
            raise KeyError("as it does")

    class Catches(nn.Module):
        def __init__(self):
            super().__init__()
            self.fails = Fails()

        def forward(self, x):
            try:
                x = self.fails(x)
            except KeyError:
                x = x * 2
            return x + x

    (found,) = additions_of(Catches(), Example.of(torch.randn(2, 4, 5, 5)))
    assert found.place == Place("", 0, 0)
