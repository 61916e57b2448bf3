import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from sbs_deploy.backends import products
from sbs_deploy.machine import clocks
from tests.sbs_deploy.graphs import IMAGE, qdq_model

ort = pytest.importorskip("onnxruntime")


def run(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"input": images})
    return np.asarray(logits)


def test_the_bound_is_the_largest_code_whose_pair_fits_into_16_bits() -> None:
    assert 2 * products.LARGEST_CODE * 127 <= 2**15 - 1 < 2 * (products.LARGEST_CODE + 1) * 127


def test_layers_that_can_saturate_are_those_with_codes_beyond_the_bound() -> None:
    """conv1 reads signed values (0..255), conv2 codes of 0..15, conv3 0..255 for want of a Clip."""
    assert [node.name for node in products.saturating_layers(qdq_model("ort"))] == ["conv1", "conv3"]
    assert products.saturating_layers(qdq_model("trt")) == []


def test_a_clip_at_the_bound_decides() -> None:
    for largest, saturates in ((products.LARGEST_CODE, False), (products.LARGEST_CODE + 1, True)):
        model = qdq_model("ort")
        for tensor in model.graph.initializer:
            if tensor.name == "q_conv2_hi":
                tensor.CopyFrom(numpy_helper.from_array(np.uint8(largest), tensor.name))
        assert ("conv2" in [node.name for node in products.saturating_layers(model)]) == saturates


def test_unsigned_weights_compute_the_same() -> None:
    model = qdq_model("ort")
    before = model.SerializeToString(deterministic=True)
    exact = products.with_exact_products(model)
    onnx.checker.check_model(exact, full_check=True)
    assert model.SerializeToString(deterministic=True) == before
    types = {tensor.name: numpy_helper.to_array(tensor).dtype for tensor in exact.graph.initializer}
    assert [types[f"conv{i}.weight"] for i in (1, 2, 3)] == [np.uint8, np.int8, np.uint8]
    images = np.random.default_rng(0).standard_normal((2, *IMAGE)).astype(np.float32)
    np.testing.assert_array_equal(run(exact, images), run(model, images))
    assert products.with_exact_products(exact) is exact


@pytest.mark.parametrize(
    ("flags", "saturate"),
    [
        (("avx2",), True),
        (("avx2", "avx_vnni"), False),
        (("avx2", "avx512f", "avx512_vnni"), False),
        (("asimddp",), False),
    ],
)
def test_processors(monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], saturate: bool) -> None:
    monkeypatch.setattr(clocks, "vector_flags", lambda: flags)
    assert products.pairs_saturate() == saturate
