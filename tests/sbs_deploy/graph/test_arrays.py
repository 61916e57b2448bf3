"""Named arrays: what is refused, and samples in parts, by NumPy."""

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sbs_deploy.graph import arrays
from sbs_deploy.graph.arrays import ArraySpec
from sbs_train.contract.errors import SbsError

X = ArraySpec(name="x", dtype="float32", shape=("batch", 2))
IDS = ArraySpec(name="ids", dtype="int64", shape=("batch",))
TABLE = ArraySpec(name="table", dtype="float32", shape=(5, "width"))
SPECS = (X, IDS, TABLE)


def inputs(samples: int = 3, **changes: np.ndarray) -> dict[str, np.ndarray]:
    whole = {
        "table": np.zeros((5, 7), np.float32),
        "x": np.arange(2 * samples, dtype=np.float32).reshape(samples, 2),
        "ids": np.arange(samples),
    }
    return {**whole, **changes}


def test_specs_come_from_the_graph() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]>'
        "g (float[batch, 3, height, 4] x, int64[N] ids, bool s) => (float[batch, 3, height, 4] y, bool t)"
        "<float w = {2.0}> { y = Mul(x, w) t = Not(s) }"
    )
    names = [(spec.name, spec.dtype, spec.shape) for spec in arrays.input_specs(model)]
    assert names == [("x", "float32", ("batch", 3, "height", 4)), ("ids", "int64", ("N",)), ("s", "bool", ())]
    assert [spec.name for spec in arrays.output_specs(model)] == ["y", "t"]
    assert arrays.open_axes(arrays.input_specs(model)) == ("height", "N")
    assert arrays.per_sample(arrays.input_specs(model)) == {"x"}


def test_the_axis_of_the_samples() -> None:
    boxes = ArraySpec(name="boxes", dtype="float32", shape=("K", 5))
    assert arrays.batch_axis((boxes,)) == "K" and arrays.batch_axis((boxes, X)) == "batch"
    assert arrays.per_sample((boxes, X, TABLE)) == {"x"} and arrays.batch_axis((TABLE,)) is None


def test_what_fits_comes_in_the_order_of_the_specs() -> None:
    turned = np.zeros((2, 3), np.float32).T
    found = arrays.checked(inputs(x=turned), SPECS, "it")
    assert list(found) == ["x", "ids", "table"]
    assert found["x"].flags.c_contiguous and np.array_equal(found["x"], turned)
    scalar = (ArraySpec(name="s", dtype="bool", shape=()),)
    assert arrays.checked({"s": np.array(True)}, scalar, "it")["s"].shape == ()


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        (np.zeros((3, 2), np.float32), "given ndarray, not arrays by name"),
        (inputs(y=np.zeros(3)), "no input y"),
        ({"x": np.zeros((3, 2), np.float32)}, "ids is missing"),
        (inputs(x=[[1.0, 2.0]]), "x is list, not a NumPy array"),
        (inputs(x=np.zeros((3, 2))), "x is float64"),
        (inputs(ids=np.zeros(3, np.int32)), "ids is int32"),
        (inputs(x=np.zeros((3, 2, 1), np.float32)), r"x is \(3, 2, 1\)"),
        (inputs(x=np.zeros((3, 4), np.float32)), r"x is \(3, 4\)"),
        (inputs(ids=np.zeros(4, np.int64)), r"ids is \(4,\)"),  # x has three samples
        (inputs(0), r"x is \(0, 2\)"),
    ],
)
def test_what_does_not_fit_is_named_with_what_is_taken(given_: object, words: str) -> None:
    with pytest.raises(SbsError, match=words) as error:
        arrays.checked(given_, SPECS, "model.onnx")  # type: ignore[arg-type]
    said = str(error.value)
    assert said.startswith("model.onnx takes x float32 (batch, 2), ids int64 (batch), table float32 (5, width); ")
    assert "\n" not in said


@given(samples=st.integers(1, 20), batch=st.integers(1, 25))
def test_parts_together_are_the_whole(samples: int, batch: int) -> None:
    whole = inputs(samples)
    parts = list(arrays.in_parts(whole, SPECS, batch))
    assert all(len(part["x"]) == len(part["ids"]) <= batch and len(part["table"]) == 5 for part in parts)
    back = arrays.joined(parts, frozenset({"x", "ids"}))
    for name, array in whole.items():
        np.testing.assert_array_equal(back[name], array)


@given(samples=st.integers(1, 9), wanted=st.integers(1, 20))
def test_samples_are_repeated_and_what_is_no_sample_is_not(samples: int, wanted: int) -> None:
    found = arrays.repeated(inputs(samples), SPECS, wanted)
    np.testing.assert_array_equal(found["ids"], np.arange(wanted) % samples)
    assert arrays.samples_of(found, SPECS) == wanted and found["table"].shape == (5, 7)


def test_noise_has_the_types_of_the_network() -> None:
    made = arrays.noise(SPECS, 4, {"width": 6})
    assert {name: (array.dtype.name, array.shape) for name, array in made.items()} == {
        "x": ("float32", (4, 2)),
        "ids": ("int64", (4,)),
        "table": ("float32", (5, 6)),
    }
    assert not made["ids"].any() and made["x"].std() > 0
    assert arrays.sizes_of(made, SPECS) == {"batch": 4, "width": 6}
