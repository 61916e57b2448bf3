import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from sbs_deploy.backends import products
from sbs_deploy.backends.base import BuiltEngine
from sbs_deploy.backends.onnxruntime import engine as backend
from sbs_deploy.backends.onnxruntime import providers
from sbs_deploy.backends.request import Request
from sbs_deploy.backends.runtime import build_engine
from sbs_deploy.backends.spec import ONNXRUNTIME
from sbs_train.contract import rundir
from sbs_train.contract.errors import SbsError
from tests.sbs_deploy.graphs import CLASSES, IMAGE, float_model, qdq_model

ort = pytest.importorskip("onnxruntime")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.ort.onnx"
    onnx.save(qdq_model("ort"), path)
    return path


def build(source: Path, name: str = "engines/model.int8.onnxruntime.onnx") -> BuiltEngine:
    request = Request(backend=ONNXRUNTIME, precision="int8")
    return build_engine(source, source.parent / name, request, made_from={"plan.json": "f" * 64})


def test_engine_holds_integer_layers_and_a_manifest(model: Path) -> None:
    built = build(model)
    kinds = [node.op_type for node in onnx.load(built.path).graph.node]
    assert kinds.count("QLinearConv") == 2
    assert (built.details["quantized_layers"], built.details["float_layers"]) == (3, ["conv3"])
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
    with backend.OnnxRuntimeEngine(build(model).path, backend.SessionSettings(precision="int8")) as engine:
        logits = engine.run({"input": images})["logits"]
        assert engine.latency_ms({"input": images}) > 0
    assert logits.shape == (5, CLASSES)
    np.testing.assert_allclose(logits, reference, atol=1e-4)


@pytest.mark.parametrize("threads", [1, 2])
def test_cpu_time_is_known_where_one_thread_computes(model: Path, threads: int) -> None:
    images = np.zeros((5, *IMAGE), np.float32)
    with backend.OnnxRuntimeEngine(build(model).path, backend.SessionSettings(threads=threads)) as engine:
        before = time.process_time()
        engine.latency_ms({"input": images})
        passed_ms = (time.process_time() - before) * 1e3
        assert engine.last_cpu_ms is None if threads > 1 else 0 < (engine.last_cpu_ms or 0) <= passed_ms


def large_weights(path: Path) -> Path:
    """A model whose first layer adds up to about 0, but not where two neighbours' products must fit into 16 bits."""
    model = qdq_model("ort")
    rng = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        if tensor.name == "conv1.weight":
            codes = rng.choice(np.array([120, -80], np.int8), tuple(tensor.dims), p=[0.4, 0.6])
            tensor.CopyFrom(onnx.numpy_helper.from_array(codes, tensor.name))
    onnx.save(model, path)
    return path


def test_large_weights_do_not_saturate(tmp_path: Path) -> None:
    """uint8 x int8 products overflow 16 bits on processors without VNNI unless the weights become uint8 too."""
    path = large_weights(tmp_path / "model.ort.onnx")
    images = np.full((1, *IMAGE), 4.0, np.float32)
    built = build(path)
    with (
        backend.OnnxRuntimeEngine(path, backend.SessionSettings(precision="int8", optimization="none")) as plain,
        backend.OnnxRuntimeEngine(path, backend.SessionSettings(precision="int8")) as source,
        backend.OnnxRuntimeEngine(built.path, backend.SessionSettings(precision="int8")) as engine,
    ):
        np.testing.assert_allclose(
            source.run({"input": images})["logits"], plain.run({"input": images})["logits"], atol=0.02
        )
        np.testing.assert_allclose(
            engine.run({"input": images})["logits"], plain.run({"input": images})["logits"], atol=0.02
        )


@pytest.mark.skipif(not products.pairs_saturate(), reason="this processor has VNNI")
def test_only_layers_that_can_saturate_pay_for_exact_products(tmp_path: Path) -> None:
    """conv2 reads codes of 0..15: it keeps the faster kernel. Without the remedy conv1 is far off."""
    path = large_weights(tmp_path / "model.ort.onnx")
    built = build(path)
    assert built.details["exact_products"] == ["conv1", "conv3"]
    graph = onnx.load(built.path).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    of = {
        node.name.partition("_token")[0]: types[node.input[3]] for node in graph.node if node.op_type == "QLinearConv"
    }
    assert of == {"conv1": onnx.TensorProto.UINT8, "conv2": onnx.TensorProto.INT8}
    images = np.full((1, *IMAGE), 4.0, np.float32)
    with (
        backend.OnnxRuntimeEngine(path, backend.SessionSettings(precision="int8", optimization="none")) as plain,
        backend.OnnxRuntimeEngine(path, backend.SessionSettings(precision="int8", exact=False)) as saturating,
    ):
        assert np.abs(saturating.run({"input": images})["logits"] - plain.run({"input": images})["logits"]).max() > 0.1


def test_layers_left_in_float_are_named(tmp_path: Path) -> None:
    """The TensorRT dialect does not fuse in ONNX Runtime."""
    path = tmp_path / "model.ort.onnx"
    onnx.save(qdq_model("trt"), path)
    assert build(path).details["float_layers"] == ["conv1", "conv2", "conv3"]


def test_corrupt_model(model: Path) -> None:
    model.write_bytes(model.read_bytes()[:500])
    with pytest.raises(SbsError, match="is damaged.*sbs-deploy export"):
        build(model)


def test_missing_model(tmp_path: Path) -> None:
    with pytest.raises(SbsError, match="is missing"):
        backend.make_session(tmp_path / "none.onnx", backend.SessionSettings(threads=1))


def test_threads_are_set(model: Path) -> None:
    session = backend.make_session(model, backend.SessionSettings(threads=2))
    assert session.get_session_options().intra_op_num_threads == 2


def test_a_wrong_shape_is_an_error(model: Path) -> None:
    with (
        backend.OnnxRuntimeEngine(model, backend.SessionSettings(precision="int8")) as engine,
        pytest.raises(SbsError, match=r"takes input float32 \(batch, 3, 8, 8\)"),
    ):
        engine.run({"input": np.zeros((1, 5, 8, 8), np.float32)})


def test_node_times_are_of_the_optimized_graph(model: Path) -> None:
    images = np.zeros((2, *IMAGE), np.float32)
    with backend.OnnxRuntimeEngine(model, backend.SessionSettings(precision="int8")) as engine:
        before = engine.run({"input": images})["logits"]
        times = engine.node_times({"input": images}, 3)
        np.testing.assert_array_equal(engine.run({"input": images})["logits"], before)
    fused = [time for time in times if time.kind == "QLinearConv"]
    assert [time.nodes for time in fused] == [("conv1",), ("conv2",)]
    assert {"conv1.weight", "conv2.weight"} <= {name for time in fused for name in time.tensors}
    assert all(time.ms >= 0 for time in times) and sum(time.ms for time in times) > 0
    assert not list(model.parent.glob("*.json")), "the trace is gone"


def test_nodes_on_a_gpu_are_not_timed_from_the_host(model: Path) -> None:
    with backend.OnnxRuntimeEngine(model, backend.SessionSettings(precision="int8")) as engine:
        engine._provider = providers.CUDA
        with pytest.raises(SbsError, match="not those of CUDAExecutionProvider; build with --backend tensorrt"):
            engine.node_times({"input": np.zeros((1, *IMAGE), np.float32)}, 1)


def test_settings_say_how_it_runs(model: Path) -> None:
    with backend.OnnxRuntimeEngine(model, backend.SessionSettings(precision="int8", threads=2)) as engine:
        assert engine.settings == {
            "provider": "CPUExecutionProvider",
            "threads": 2,
            "spinning": True,
            "io_binding": False,
            "transfers": "none",
        }
    options = backend.make_session(model, backend.SessionSettings(threads=2)).get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "1"
