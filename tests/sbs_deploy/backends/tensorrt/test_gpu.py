"""The device layer, engines and their validation on a real GPU."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from sbs_deploy.backends.onnxruntime.engine import OnnxRuntimeEngine, SessionSettings
from sbs_deploy.backends.request import BatchProfile, Request
from sbs_deploy.backends.runtime import build_engine
from sbs_deploy.backends.spec import TENSORRT, TENSORRT_RTX, Backend, choose_backend, import_problem
from sbs_deploy.backends.tensorrt.context import runtime_cache_path
from sbs_deploy.backends.tensorrt.device import Device, TensorMemory, open_device
from sbs_deploy.backends.tensorrt.engine import TensorRTEngine
from sbs_deploy.build import BuildOptions, engine_stage
from sbs_deploy.legalise.half import half_precision
from sbs_deploy.validate.run import validate_run, with_engines
from sbs_train.contract.errors import SbsError
from sbs_train.contract.rundir import RunDir
from tests.sbs_deploy.graphs import CONVOLUTIONS, IMAGE, qdq_model

pytestmark = pytest.mark.gpu

IMAGES = np.random.default_rng(0).standard_normal((4, *IMAGE)).astype(np.float32)
MIB = 2**20


@pytest.fixture
def device() -> Iterator[Device]:
    try:
        opened = open_device()
    except SbsError as error:
        pytest.skip(str(error))
    with opened:
        yield opened


@pytest.fixture(params=[TENSORRT, TENSORRT_RTX], ids=lambda backend: backend.name)
def backend(request: pytest.FixtureRequest) -> Backend:
    chosen: Backend = request.param
    if (problem := import_problem(chosen)) is not None:
        pytest.skip(problem)
    return chosen


@pytest.fixture
def engine_file(backend: Backend, tmp_path: Path) -> Path:
    """An INT8 engine that this chip accepts."""
    source = tmp_path / "model.trt.onnx"
    onnx.save(half_precision(qdq_model("trt")), source)
    request = Request(backend=backend, precision="int8", profile=BatchProfile(opt=4, max=8))
    built = build_engine(source, tmp_path / f"model.int8.{backend.name}.engine", request, made_from={})
    try:
        TensorRTEngine(built.path, backend=backend, precision="int8").__exit__(None, None, None)
    except SbsError as error:
        pytest.skip(f"this chip is not accepted: {error}")
    return built.path


def used_bytes() -> int:
    import torch

    free, total = torch.cuda.mem_get_info()
    return total - free


def test_a_round_trip_through_device_memory(device: Device) -> None:
    tensor, done = TensorMemory(device), device.event(spin=False)
    for count in (1000, 10, 2000):
        tensor.resize((count,))
        sent = np.arange(count, dtype=np.float32)
        tensor.host[...] = sent
        tensor.upload()
        tensor.host[...] = 0
        tensor.download()
        device.record(done)
        device.wait(done)
        np.testing.assert_array_equal(tensor.host, sent)


@pytest.mark.parametrize("spin", [True, False])
def test_events_are_ordered(device: Device, spin: bool) -> None:
    start, end = device.event(spin=spin), device.event(spin=spin)
    for _ in range(3):
        device.record(start)
        device.record(end)
        device.wait(end)
        assert device.elapsed_ms(start, end) >= 0


def test_a_captured_copy_happens_at_each_launch(device: Device) -> None:
    tensor, done = TensorMemory(device), device.event(spin=True)
    tensor.resize((100,))
    result = device.pin(400).view(np.float32)
    result[...] = -1
    graph = device.capture(lambda: (tensor.upload(), device.download(result, tensor.address))[0])
    assert (result == -1).all(), "capturing runs nothing"
    for value in (1.0, 2.0):
        tensor.host[...] = value
        graph.launch()
        device.record(done)
        device.wait(done)
        assert (result == value).all()
    graph.close()


def test_nothing_grows_over_a_thousand_devices_events_and_shapes(device: Device) -> None:
    tensor = TensorMemory(device)
    tensor.resize((MIB,))
    before = used_bytes()
    for count in range(1000):
        event = device.event(spin=True)
        tensor.resize((1 + count * 997 % MIB,))
        tensor.upload()
        device.record(event)
        device.wait(event)
        device.destroy(event)
    assert used_bytes() - before < 4 * MIB


def test_an_engine_agrees_with_onnx_runtime(engine_file: Path, backend: Backend) -> None:
    source = engine_file.parent / "model.trt.onnx"
    with OnnxRuntimeEngine(source, SessionSettings(precision="int8", optimization="none")) as reference:
        expected = reference.run({"input": IMAGES})["logits"]
    with TensorRTEngine(engine_file, backend=backend, precision="int8") as engine:
        logits = engine.run({"input": IMAGES})["logits"]
        assert engine.latency_ms({"input": IMAGES}) > 0 and engine.last_enqueue_ms > 0
    assert (logits.argmax(1) == expected.argmax(1)).all()
    np.testing.assert_allclose(logits, expected, atol=0.1)


def test_a_graph_gives_the_same_logits(engine_file: Path, backend: Backend) -> None:
    with TensorRTEngine(engine_file, backend=backend, precision="int8", cuda_graph=False, spin_wait=False) as engine:
        expected = [engine.run({"input": IMAGES[:count]})["logits"] for count in (4, 1, 4)]
        assert engine.settings["cuda_graph"] == "off: asked for"
    with TensorRTEngine(engine_file, backend=backend, precision="int8") as engine:
        for count, plain in zip((4, 1, 4), expected, strict=True):
            np.testing.assert_array_equal(engine.run({"input": IMAGES[:count]})["logits"], plain)
            assert engine.settings["cuda_graph"] == ("rtx" if backend is TENSORRT_RTX else "captured")
    if backend is TENSORRT_RTX:
        assert runtime_cache_path(engine_file).is_file()
        with TensorRTEngine(engine_file, backend=backend, precision="int8") as engine:
            assert engine.settings["runtime_cache"] == "loaded"


def test_a_thousand_runs_need_no_more_memory(engine_file: Path, backend: Backend) -> None:
    with TensorRTEngine(engine_file, backend=backend, precision="int8") as engine:
        for count in (8, 1, 4):
            engine.run({"input": np.repeat(IMAGES, 2, axis=0)[:count]})
        before = used_bytes()
        for count in range(1000):
            engine.run({"input": IMAGES[: 1 + count % 4]})
            engine.latency_ms({"input": IMAGES[: 1 + count % 4]})
        assert used_bytes() - before < 4 * MIB


def test_layers_have_times_and_names(engine_file: Path, backend: Backend) -> None:
    with TensorRTEngine(engine_file, backend=backend, precision="int8") as engine:
        times = engine.node_times({"input": IMAGES}, 10)
    assert all(time.ms >= 0 and time.name for time in times) and sum(time.ms for time in times) > 0
    assert set(CONVOLUTIONS) <= {node for time in times for node in time.nodes}


def test_engines_of_a_run_are_validated(run_copy: RunDir, engine_file: Path, backend: Backend) -> None:
    for precision in ("int8", "fp16", "fp32"):
        engine_stage(run_copy, BuildOptions(precision=precision, choice=choose_backend(backend.name)))
    report = with_engines(run_copy, validate_run(run_copy))
    assert [(one.precision, one.passed) for one in report.engines] == [("fp16", True), ("fp32", True), ("int8", True)]
    assert report.passed
