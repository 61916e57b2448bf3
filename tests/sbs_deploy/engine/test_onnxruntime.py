from pathlib import Path

import numpy as np
import onnx
import pytest

from sbs_deploy.engine import onnxruntime as backend
from sbs_train.contract import rundir
from sbs_train.contract.errors import SbsError
from tests.sbs_deploy.graphs import CLASSES, IMAGE, float_model, qdq_model

ort = pytest.importorskip("onnxruntime")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.ort.onnx"
    onnx.save(qdq_model("ort"), path)
    return path


def build(source: Path, name: str = "engines/model.int8.onnxruntime.onnx") -> backend.BuiltEngine:
    return backend.build_onnxruntime(source, source.parent / name, precision="int8", plan_sha256="f" * 64)


def test_engine_holds_integer_convolutions_and_a_manifest(model: Path) -> None:
    built = build(model)
    kinds = [node.op_type for node in onnx.load(built.path).graph.node]
    assert kinds.count("QLinearConv") == built.details["integer_convolutions"] == 2
    assert built.details["quantized_convolutions"] == 3
    assert 0 <= built.details["max_abs_diff_to_source"] < 0.1
    manifest = rundir.require_whole(built.path, "sbs-deploy build")
    assert manifest.made_from["model.ort.onnx"] == rundir.sha256_of(model)
    assert manifest.made_from["plan.json"] == "f" * 64
    assert manifest.versions == {"onnxruntime": ort.__version__}


def test_a_current_engine_is_left_alone_and_a_stale_one_is_not(model: Path) -> None:
    first = build(model)
    before = first.path.stat().st_mtime_ns
    assert build(model).skipped
    assert first.path.stat().st_mtime_ns == before
    onnx.save(float_model(), model)
    assert not build(model).skipped


def test_engine_computes_what_the_model_computes(model: Path) -> None:
    images = np.random.default_rng(0).standard_normal((5, *IMAGE)).astype(np.float32)
    reference = ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"input": images})[0]
    with backend.OnnxRuntimeEngine(build(model).path, precision="int8") as engine:
        logits = engine.run(images)
        assert engine.latency_ms(images) > 0
    assert logits.shape == (5, CLASSES)
    np.testing.assert_allclose(logits, reference, atol=1e-4)


def test_large_weights_do_not_saturate(tmp_path: Path) -> None:
    """uint8 x int8 products overflow 16 bits on processors without VNNI unless ONNX Runtime is told to avoid it."""
    model = qdq_model("ort")
    for initializer in model.graph.initializer:
        if initializer.name.startswith("conv") and initializer.name.endswith(".weight"):
            shape = tuple(initializer.dims)
            initializer.CopyFrom(onnx.numpy_helper.from_array(np.full(shape, 120, np.int8), initializer.name))
    path = tmp_path / "model.ort.onnx"
    onnx.save(model, path)
    images = np.full((1, *IMAGE), 4.0, np.float32)
    with (
        backend.OnnxRuntimeEngine(path, precision="int8", optimization="none") as plain,
        backend.OnnxRuntimeEngine(build(path).path, precision="int8") as engine,
    ):
        np.testing.assert_allclose(engine.run(images), plain.run(images), rtol=1e-4)


def test_a_convolution_left_in_float_is_an_error_and_leaves_no_engine(tmp_path: Path) -> None:
    """The TensorRT dialect does not fuse in ONNX Runtime."""
    path = tmp_path / "model.ort.onnx"
    onnx.save(qdq_model("trt"), path)
    with pytest.raises(SbsError, match="runs 2 of 2 quantized convolutions in float, first conv1"):
        build(path)
    assert list((tmp_path / "engines").iterdir()) == []


def test_corrupt_model(model: Path) -> None:
    model.write_bytes(model.read_bytes()[:500])
    with pytest.raises(SbsError, match="cannot be loaded.*sbs-deploy export"):
        build(model)


def test_missing_model(tmp_path: Path) -> None:
    with pytest.raises(SbsError, match="is missing"):
        backend.make_session(tmp_path / "none.onnx", threads=1)


def test_a_provider_that_is_not_there_is_an_error(model: Path) -> None:
    if backend.CUDA in ort.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(SbsError, match="onnxruntime-gpu"):
        backend.make_session(model, threads=1, providers=(backend.CUDA, backend.CPU))


def test_a_provider_that_fell_back_is_an_error(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime drops a listed provider that does not start, silently."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: [backend.CUDA, backend.CPU])
    with pytest.raises(SbsError, match="fell back to"), pytest.warns(UserWarning):
        backend.make_session(model, threads=1, providers=(backend.CUDA, backend.CPU))


def test_threads_are_set(model: Path) -> None:
    session = backend.make_session(model, threads=2)
    assert session.get_session_options().intra_op_num_threads == 2


def test_a_wrong_shape_is_an_error(model: Path) -> None:
    with backend.OnnxRuntimeEngine(model, precision="int8") as engine, pytest.raises(SbsError, match="does not run on"):
        engine.run(np.zeros((1, 5, 8, 8), np.float32))
