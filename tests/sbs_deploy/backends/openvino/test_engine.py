"""Real OpenVINO on this machine's CPU, against ONNX Runtime in float."""

import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from sbs_deploy.backends import products
from sbs_deploy.backends.base import BuiltEngine, cache_of
from sbs_deploy.backends.onnxruntime.engine import OnnxRuntimeEngine, SessionSettings
from sbs_deploy.backends.openvino import engine as backend
from sbs_deploy.backends.request import BatchProfile, Request
from sbs_deploy.backends.runtime import build_engine
from sbs_deploy.backends.spec import OPENVINO, choose_backend
from sbs_deploy.build import BuildOptions, check_precision, engine_stage, integer_summary
from sbs_deploy.export.dialects import ORT
from sbs_deploy.measure.protocol import Protocol
from sbs_deploy.measure.run import BenchSettings, bench_run
from sbs_train.contract import rundir
from sbs_train.contract.errors import SbsError
from sbs_train.contract.grid import make_grid
from sbs_train.contract.plan import load_plan
from sbs_train.contract.results import Row, TimedRow
from sbs_train.contract.rundir import RunDir
from tests.sbs_deploy.export.text_graphs import graph, insert, layer
from tests.sbs_deploy.graphs import CLASSES, CONVOLUTIONS, IMAGE, float_model, make_run, qdq_model

ov = pytest.importorskip("openvino")
pytest.importorskip("onnxruntime")
IMAGES = np.random.default_rng(0).standard_normal((5, *IMAGE)).astype(np.float32)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.ort.onnx"
    onnx.save(qdq_model("ort"), path)
    return path


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return make_run(tmp_path / "run")


def compile_here(source: Path, name: str = "engines/model.int8.openvino.onnx") -> BuiltEngine:
    request = Request(backend=OPENVINO, precision="int8")
    return build_engine(source, source.parent / name, request, made_from={"plan.json": "f" * 64})


def make_engine(run: RunDir, precision: str = "int8", device: str | None = None) -> BuiltEngine:
    choice = choose_backend("openvino", device=device)
    options = BuildOptions(precision=precision, choice=choice, batches=BatchProfile(max=8))  # type: ignore[arg-type]
    check_precision(options, load_plan(run.plan))
    return engine_stage(run, options)


def test_engine_is_the_model_with_what_was_compiled_and_a_manifest(model: Path) -> None:
    built = compile_here(model)
    assert built.path.read_bytes() == model.read_bytes()
    assert list(cache_of(built.path).iterdir())
    assert (built.details["quantized_layers"], built.details["float_layers"]) == (len(CONVOLUTIONS), [])
    assert 0 <= built.details["max_abs_diff_to_source"] < 0.1
    assert built.details["device_name"] == ov.Core().get_property("CPU", "FULL_DEVICE_NAME").strip()
    manifest = rundir.require_whole(built.path, "sbs-deploy build")
    assert manifest.made_from["model.ort.onnx"] == rundir.sha256_of(model)
    assert manifest.made_from["plan.json"] == "f" * 64
    assert manifest.versions == {"openvino": ov.__version__}


def test_a_current_engine_is_left_alone_and_a_stale_one_is_not(model: Path) -> None:
    compile_here(model)
    assert compile_here(model).skipped
    onnx.save(qdq_model("trt"), model)
    assert not compile_here(model).skipped


def test_an_engine_for_other_instruction_sets_is_built_again(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_here(model)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert not compile_here(model).skipped and compile_here(model).skipped


@pytest.mark.parametrize("batch", [1, 5])
def test_engine_computes_what_the_model_computes(model: Path, batch: int) -> None:
    with OnnxRuntimeEngine(model, SessionSettings(precision="int8", optimization="none")) as reference:
        expected = reference.run({"input": IMAGES[:batch]})["logits"]
    with backend.OpenVinoEngine(model, precision="int8") as engine:
        assert [(spec.name, spec.dtype, spec.shape) for spec in engine.inputs] == [
            ("input", "float32", ("batch", *IMAGE))
        ]
        assert engine.outputs[0].shape == ("batch", CLASSES)
        logits = engine.run({"input": IMAGES[:batch]})["logits"]
        before = time.process_time()
        assert engine.latency_ms({"input": IMAGES[:batch]}) > 0
        assert 0 < (engine.last_cpu_ms or 0) <= (time.process_time() - before) * 1e3
    assert logits.shape == (batch, CLASSES)
    np.testing.assert_allclose(logits, expected, atol=0.1)


def test_float_agrees_to_rounding_and_runs_no_integers(tmp_path: Path) -> None:
    path = tmp_path / "model.slim.onnx"
    onnx.save(float_model(), path)
    with (
        backend.OpenVinoEngine(path, precision="fp32") as engine,
        OnnxRuntimeEngine(path, SessionSettings(precision="fp32")) as reference,
    ):
        np.testing.assert_allclose(
            engine.run({"input": IMAGES})["logits"], reference.run({"input": IMAGES})["logits"], atol=1e-3
        )
        assert engine.integer_layers() == set()


def test_results_do_not_share_memory(model: Path) -> None:
    with backend.OpenVinoEngine(model, precision="int8") as engine:
        first = engine.run({"input": IMAGES[:1]})["logits"]
        kept = first.copy()
        engine.run({"input": IMAGES[1:2]})
        np.testing.assert_array_equal(first, kept)


def test_a_quantized_layer_in_float_is_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend.OpenVinoEngine, "integer_layers", lambda self: {"conv1", "conv3"})
    details = compile_here(model).details
    assert integer_summary(details) == "2 of 3 quantized layers run in INT8; in float: conv2"


def test_a_layer_may_have_the_name_of_the_output_that_it_writes(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (last,) = (node.name for node in onnx.load(model).graph.node if "logits" in node.output)
    monkeypatch.setattr(backend.OpenVinoEngine, "integer_layers", lambda self: {"conv1", "conv2", "conv3", "logits"})
    assert last not in compile_here(model).details["float_layers"]


def test_layers_whose_bias_is_taken_apart_keep_their_names(tmp_path: Path) -> None:
    """Zero-points of inputs that are no zero: OpenVINO then adds the bias with the compensation."""
    rng, level = np.random.default_rng(0), make_grid("signed", (8,)).level(8)
    ones = np.ones((8, 8, 1, 1))
    text = """<ir_version: 10, opset_import: ["" : 21]>
    g (float[N,8,16,16] input) => (float[N,8,16,16] logits) {
        x = Conv (input, w1, b)
        y = Conv (x, w2, b)
        logits = Conv (y, w3, b)
    }"""
    weights = {f"w{i}": rng.standard_normal((8, 8, 1, 1)).astype(np.float32) for i in (1, 2, 3)}
    float_graph = graph(text, **weights, b=rng.standard_normal(8).astype(np.float32))
    layers = {name: layer(ones, level, step=0.1) for name in weights}
    onnx.save(insert(float_graph, layers, ORT), tmp_path / "model.onnx")
    with backend.OpenVinoEngine(tmp_path / "model.onnx", precision="int8") as engine:
        engine.run({"input": rng.standard_normal((1, 8, 16, 16)).astype(np.float32)})
        found = engine.integer_layers()
    assert found is not None and {"w1", "w2"} <= found


def test_a_device_that_does_not_tell_is_not_counted(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend.OpenVinoEngine, "integer_layers", lambda self: None)
    details = compile_here(model).details
    assert "does not say" in integer_summary(details)


def test_layers_that_may_saturate_are_named(model: Path) -> None:
    details = compile_here(model).details
    if products.pairs_saturate():
        assert details["saturating_layers"] == ["conv1", "conv3"]
        assert "2 may saturate" in integer_summary(details)
    else:
        assert "saturate" not in integer_summary(details)


def test_a_device_that_is_not_here(run: RunDir) -> None:
    if "NPU" in ov.Core().available_devices:
        pytest.skip("there is an NPU")
    with pytest.raises(SbsError, match="--device NPU: OpenVINO .* finds no such device here, it has CPU.*driver"):
        make_engine(run, device="NPU")


def test_fp16_on_a_cpu_is_refused(run: RunDir) -> None:
    with pytest.raises(SbsError, match="--engine fp16 is not supported by openvino on CPU.*--engine fp32"):
        make_engine(run, "fp16")


def test_damaged_files(tmp_path: Path, model: Path) -> None:
    with pytest.raises(SbsError, match="is missing"):
        backend.OpenVinoEngine(tmp_path / "none.onnx", precision="int8")
    model.write_bytes(model.read_bytes()[:300])
    with pytest.raises(SbsError, match="cannot be read.*make it again"):
        backend.OpenVinoEngine(model, precision="int8")
    with pytest.raises(SbsError, match="is damaged.*sbs-deploy export"):
        compile_here(model)


@pytest.mark.parametrize("mode", ["wrap", "edge", "reflect"])
def test_padding_is_taken_or_refused_with_a_backend_that_takes_it(tmp_path: Path, mode: str) -> None:
    graph = onnx.parser.parse_graph(
        "g (float[batch, 3, 8, 8] input) => (float[batch, 4, 8, 8] logits)"
        '{ padded = Pad <mode = "' + mode + '"> (input, pads) logits = Conv (padded, weight) }'
    )
    weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    pads = np.int64([0, 0, 1, 1, 0, 0, 1, 1])
    graph.initializer.extend(onnx.numpy_helper.from_array(v, n) for n, v in (("weight", weight), ("pads", pads)))
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    source = tmp_path / "model.ort.onnx"
    onnx.save(model, source)
    if mode != "wrap":
        assert compile_here(source).path.is_file()
        return
    with pytest.raises(SbsError, match=r"circular padding.*--backend onnxruntime") as error:
        compile_here(source)
    assert "\n" not in str(error.value)


def test_a_wrong_shape_is_an_error(model: Path) -> None:
    with (
        backend.OpenVinoEngine(model, precision="int8") as engine,
        pytest.raises(SbsError, match=r"takes input float32 \(batch, 3, 8, 8\)"),
    ):
        engine.run({"input": np.zeros((1, 5, 8, 8), np.float32)})


def bench(run: RunDir) -> list[Row]:
    quick = Protocol(warmup_ms=0.0, warmup_iterations=2, rounds=3, block_ms=0.1, block_iterations=(3, 3))
    return bench_run(run, BenchSettings(protocol=quick), lambda line: None)


def test_bench_measures_it_against_its_own_float_control(run: RunDir) -> None:
    make_engine(run)
    make_engine(run, "fp32")
    rows = {(row.artifact, row.backend): row for row in bench(run) if isinstance(row, TimedRow)}
    assert {key for key in rows if key[1] == "openvino"} == {
        ("deploy/model.fp32.onnx", "openvino"),
        ("deploy/model.slim.onnx", "openvino"),
        ("deploy/engines/model.int8.openvino.onnx", "openvino"),
        ("deploy/engines/model.fp32.openvino.onnx", "openvino"),
    }
    int8 = rows["deploy/engines/model.int8.openvino.onnx", "openvino"]
    control = rows["deploy/model.fp32.onnx", "openvino"]
    assert str(int8.device).endswith("(OpenVINO)") and control.device == int8.device
    assert control.speedup_vs_fp32 == 1
    assert rows["deploy/model.fp32.onnx", "onnxruntime"].speedup_vs_fp32 == 1
    assert rows["deploy/model.ort.onnx", "onnxruntime"].error is None


@pytest.mark.parametrize("field", ["device_name", "openvino"])
def test_an_engine_of_another_machine_is_not_measured(run: RunDir, field: str) -> None:
    path = make_engine(run).path
    manifest = rundir.read_manifest(path)
    versions, details = dict(manifest.versions), dict(manifest.details)
    (versions if field == "openvino" else details)[field] = "other"
    rundir.write_manifest(path, manifest.made_from, versions=versions, details=details)
    row = bench(run)[-1]
    assert not isinstance(row, TimedRow)
    assert f"was built for {field.replace('_', ' ')} other, here is" in str(row.error)
    assert f"run `sbs-deploy build {run.root} --engine int8 --backend openvino` here" in str(row.error)


def test_node_times_name_the_nodes_that_were_fused(model: Path) -> None:
    with backend.OpenVinoEngine(model, precision="int8") as engine:
        before = engine.run({"input": IMAGES[:2]})["logits"]
        times = engine.node_times({"input": IMAGES[:2]}, 3)
        np.testing.assert_array_equal(engine.run({"input": IMAGES[:2]})["logits"], before)
    kernels = [time for time in times if time.kind == "Convolution"]
    assert [next(name for name in CONVOLUTIONS if name in time.nodes) for time in kernels] == list(CONVOLUTIONS)
    assert all(time.ms >= 0 for time in times) and sum(time.ms for time in times) > 0


def test_settings_say_how_it_runs(model: Path) -> None:
    with backend.OpenVinoEngine(model, precision="int8", threads=2) as engine:
        assert engine.settings.items() >= {"device": "CPU", "threads": 2, "streams": 1, "pinning": False}.items()
