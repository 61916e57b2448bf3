"""Any structure of inputs and outputs, by hand."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import TensorSpec
from sbs_train.example import Example, floats_of, named_outputs, specs_of


@dataclass
class Boxes:
    boxes: torch.Tensor
    scores: list[torch.Tensor]


class Many(nn.Module):
    """Two inputs by position, one by keyword, and more."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.embed = nn.Embedding(10, 4)

    def forward(self, image, ids, *more, mask=None, **rest):
        y = self.conv(image) + self.embed(ids)[:, :, None, None] * rest["scale"] + sum(m.mean() for m in more)
        return {"map": y * mask, "pooled": (y.mean((2, 3)), y.flatten(1).argmax(1))}


def many(samples=2):
    return Example(
        (torch.ones(samples, 3, 5, 5), torch.arange(samples), torch.ones(7), torch.ones(())),
        {"mask": torch.ones(1, 1, 5, 5), "scale": torch.ones(samples, 1, 1, 1)},
    )


def test_inputs_are_named_by_their_parameters():
    assert list(many().named(Many())) == ["image", "ids", "more.0", "more.1", "mask", "scale"]
    nested = Example.of({"input": {"left": torch.ones(2, 1), "right": [torch.ones(2, 3)]}})
    assert list(nested.named(nn.Identity())) == ["input.left", "input.right.0"]


@pytest.mark.parametrize(
    ("inputs", "args", "kwargs"),
    [
        (torch.ones(3, 2), 1, []),
        ((torch.ones(3), torch.ones(3)), 2, []),
        ({"a": torch.ones(3), "b": None}, 0, ["a", "b"]),
        ([torch.ones(3), torch.ones(3)], 1, []),
    ],
)
def test_how_a_model_is_called(inputs, args, kwargs):
    example = Example.of(inputs)
    assert (len(example.args), list(example.kwargs), example.samples) == (args, kwargs, 3)


@pytest.mark.parametrize("inputs", [(), {}, torch.ones(()), {"a": 3}])
def test_inputs_without_a_batch_are_refused(inputs):
    with pytest.raises(SbsError, match="give a tensor"):
        Example.of(inputs)


def test_other_arguments_than_those_of_forward_are_refused():
    with pytest.raises(SbsError, match="does not take the example inputs"):
        Example.of({"wrong": torch.ones(2)}).named(nn.Identity())


def test_outputs_are_named_by_their_place():
    y = torch.ones(2)
    for output, names in (
        (y, ["output"]),
        ((y, [y, None, y]), ["output.0", "output.1.0", "output.1.2"]),
        ({"logits": y, "aux": {"a": y}, 3: y}, ["logits", "aux.a", "3"]),
        ([{"boxes": y}, {"boxes": y}], ["output.0.boxes", "output.1.boxes"]),
        (Boxes(y, [y]), ["boxes", "scores.0"]),
        ({"a/b c": y, "a_b_c": y}, ["a_b_c", "a_b_c_2"]),
        ("text", []),
    ):
        assert list(named_outputs(output)) == names
    assert list(named_outputs({"fc.weight": y}, {"fc.weight"})) == ["fc.weight_2"]
    assert len(floats_of((y, y.long()))) == 1


def test_specs_of_a_network_with_many_inputs():
    model = Many().train()
    inputs, outputs = specs_of(model, many(3))

    def spec(name, dtype, *shape):
        return TensorSpec(name=name, dtype=dtype, shape=list(shape))

    assert inputs == [
        spec("image", "float32", "batch", 3, 5, 5),
        spec("ids", "int64", "batch"),
        spec("more.0", "float32", 7),
        spec("more.1", "float32"),
        spec("mask", "float32", 1, 1, 5, 5),
        spec("scale", "float32", "batch", 1, 1, 1),
    ]
    assert outputs == [
        spec("map", "float32", "batch", 4, 5, 5),
        spec("pooled.0", "float32", "batch", 4),
        spec("pooled.1", "int64", "batch"),
    ]
    assert model.training


class Tokens(nn.Module):
    def forward(self, x):
        return x.flatten(0, 1), x.sum(0)


def test_axes_that_vary_with_the_batch():
    _, (rows, total) = specs_of(Tokens(), Example.of(torch.ones(2, 4, 2)))
    assert rows.shape == ["4*batch", 2] and total.shape == [4, 2]


def test_a_type_that_no_engine_has_is_refused():
    with pytest.raises(SbsError, match="output is complex64"):
        specs_of(Complex(), Example.of(torch.ones(2)))
    with pytest.raises(SbsError, match="returns no tensor"):
        specs_of(Nothing(), Example.of(torch.ones(2)))


class Complex(nn.Module):
    def forward(self, x):
        return torch.complex(x, x)


class Nothing(nn.Module):
    def forward(self, x):
        return None


def test_random_examples():
    one, two, other = (many(4).random(seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one.tensors, two.tensors, strict=True))
    assert not torch.equal(one.tensors[0], other.tensors[0]) and torch.equal(one.tensors[1], torch.arange(4))
    first = one.first(2)
    assert [len(t) for t in first.tensors if t.dim()] == [2, 2, 7, 1, 2] and torch.equal(first.args[1], torch.arange(2))
    assert [t.dtype for t in one.to(torch.float64).tensors][:2] == [torch.float64, torch.int64]
