"""Running an engine, on fakes of pycuda, cuda-python and TensorRT whose memory is checked and counted."""

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sbs_deploy.backends.base import NodeTime
from sbs_deploy.backends.spec import TENSORRT, TENSORRT_RTX
from sbs_deploy.backends.tensorrt import engine as trt_runtime
from sbs_deploy.backends.tensorrt import profile as trt_profile
from sbs_deploy.backends.tensorrt.context import runtime_cache_path
from sbs_deploy.backends.tensorrt.device import Device
from sbs_deploy.backends.tensorrt.device_cuda_python import CudaPythonDevice
from sbs_deploy.backends.tensorrt.device_pycuda import PycudaDevice
from sbs_deploy.backends.tensorrt.engine import TensorRTEngine
from sbs_train.contract.errors import SbsError
from tests.fake_cuda import FakeMemory, fake_cuda_runtime, fake_pycuda
from tests.fakes import LAYERS, FakeTensorRT, FakeTensorRTX

IMAGES = np.arange(3 * 3 * 8 * 8, dtype=np.float32).reshape(3, 3, 8, 8)
EXPECTED = IMAGES.reshape(3, -1)[:, :10] * 2


def make_device(kind: str, memory: FakeMemory) -> Device:
    runtime = fake_cuda_runtime(memory)
    return PycudaDevice(fake_pycuda(memory), runtime) if kind == "pycuda" else CudaPythonDevice(runtime)


@pytest.fixture
def engine_file(tmp_path: Path) -> Path:
    path = tmp_path / "model.int8.tensorrt.engine"
    path.write_bytes(b"plan")
    return path


def install(monkeypatch: pytest.MonkeyPatch, trt: Any, device: Device) -> None:
    monkeypatch.setattr(trt_runtime, "require_module", lambda backend: trt)
    monkeypatch.setattr(trt_runtime, "open_device", lambda: device)


def open_engine(
    monkeypatch: pytest.MonkeyPatch, path: Path, trt: FakeTensorRT, kind: str = "cuda-python", **settings: bool
) -> TensorRTEngine:
    install(monkeypatch, trt, make_device(kind, trt.memory))
    backend = TENSORRT_RTX if isinstance(trt, FakeTensorRTX) else TENSORRT
    return TensorRTEngine(path, backend=backend, precision="int8", **settings)


@pytest.mark.parametrize("version", ["10.13", "11.4"])
@pytest.mark.parametrize("kind", ["pycuda", "cuda-python"])
def test_run_and_time(monkeypatch: pytest.MonkeyPatch, engine_file: Path, kind: str, version: str) -> None:
    memory = FakeMemory()
    with open_engine(monkeypatch, engine_file, FakeTensorRT(version, memory), kind) as engine:
        assert engine.device == "Fake GPU"
        np.testing.assert_array_equal(engine.run({"input": IMAGES})["logits"], EXPECTED)
        np.testing.assert_array_equal(
            engine.run({"input": IMAGES[:1] + 1})["logits"], (IMAGES[:1].reshape(1, -1)[:, :10] + 1) * 2
        )
        assert engine.latency_ms({"input": IMAGES}) == {"pycuda": 1.5, "cuda-python": 2.0}[kind]
        assert engine.last_enqueue_ms > 0
        np.testing.assert_array_equal(engine.run({"input": IMAGES})["logits"], EXPECTED)
    assert memory.live == (0, 0, 0, 0), "everything is given back"


@pytest.mark.parametrize("kind", ["pycuda", "cuda-python"])
def test_an_inference_is_launched_as_a_graph(monkeypatch: pytest.MonkeyPatch, engine_file: Path, kind: str) -> None:
    trt = FakeTensorRT("11.4", FakeMemory())
    with open_engine(monkeypatch, engine_file, trt, kind) as engine:
        assert engine.settings["cuda_graph"] == "off: nothing has run yet"
        engine.run({"input": IMAGES})
        assert engine.settings == {"cuda_graph": "captured", "spin_wait": True, "transfers": "excluded"}
        before = trt.enqueued
        for _ in range(5):
            np.testing.assert_array_equal(engine.run({"input": IMAGES + 1})["logits"], EXPECTED + 2)
            engine.latency_ms({"input": IMAGES})
        assert trt.enqueued == before == 2, "once as it is, once to be captured"
        assert trt.memory.launches == 11


def test_without_a_graph(monkeypatch: pytest.MonkeyPatch, engine_file: Path) -> None:
    trt = FakeTensorRT("11.4", FakeMemory())
    with open_engine(monkeypatch, engine_file, trt, cuda_graph=False, spin_wait=False) as engine:
        np.testing.assert_array_equal(engine.run({"input": IMAGES})["logits"], EXPECTED)
        assert engine.settings == {"cuda_graph": "off: asked for", "spin_wait": False, "transfers": "excluded"}
    assert trt.memory.launches == 0 and trt.memory.asked == 0 and trt.memory.slept > 0


@pytest.mark.parametrize("why", ["capture", "cudaStreamEndCapture", "cudaGraphInstantiate", "no cuda-python"])
def test_what_cannot_be_captured_runs_all_the_same_and_says_why(
    monkeypatch: pytest.MonkeyPatch, engine_file: Path, why: str
) -> None:
    memory = FakeMemory()
    if why == "no cuda-python":
        device: Device = PycudaDevice(fake_pycuda(memory))
    else:
        device = CudaPythonDevice(fake_cuda_runtime(memory, failing=None if why == "capture" else why))
    trt = FakeTensorRT("10.13", memory, refuse="capture" if why == "capture" else None, words="a loop on the host")
    install(monkeypatch, trt, device)
    words = {"capture": "a loop on the host", "no cuda-python": "pip install cuda-python"}.get(why, why)
    with TensorRTEngine(engine_file, backend=TENSORRT, precision="int8") as engine:
        np.testing.assert_array_equal(engine.run({"input": IMAGES})["logits"], EXPECTED)
        assert engine.latency_ms({"input": IMAGES}) > 0
        assert engine.settings["cuda_graph"].startswith("off: ") and words in engine.settings["cuda_graph"]
    assert memory.live == (0, 0, 0, 0)


@pytest.mark.parametrize("kind", ["pycuda", "cuda-python"])
def test_nothing_grows_over_runs_and_shapes(monkeypatch: pytest.MonkeyPatch, engine_file: Path, kind: str) -> None:
    memory = FakeMemory()
    with open_engine(monkeypatch, engine_file, FakeTensorRT("11.4", memory), kind) as engine:
        engine.run({"input": IMAGES})
        held, size = memory.live, sum(map(len, memory.buffers.values()))
        assert held == (2, 2, 2, 1), "input and logits on both sides, start and end, one graph"
        for _ in range(1000):
            engine.run({"input": IMAGES})
            engine.latency_ms({"input": IMAGES})
        assert memory.live == held
        for count in range(1000):
            images = IMAGES[: 1 + count % 3] + count
            np.testing.assert_array_equal(
                engine.run({"input": images})["logits"], images.reshape(len(images), -1)[:, :10] * 2
            )
            engine.latency_ms({"input": images})
        assert memory.live == held and sum(map(len, memory.buffers.values())) == size
    assert memory.live == (0, 0, 0, 0)


@pytest.mark.parametrize("step", ["deserialize", "context", "shape", "address", "enqueue"])
def test_a_refusal_quotes_the_logger_and_frees_the_device(
    monkeypatch: pytest.MonkeyPatch, engine_file: Path, step: str
) -> None:
    memory = FakeMemory()
    driver = fake_pycuda(memory)
    trt = FakeTensorRT("11.4", memory, refuse=step, words="built for another chip")
    install(monkeypatch, trt, PycudaDevice(driver, fake_cuda_runtime(memory)))
    with (
        pytest.raises(SbsError, match="built for another chip"),
        TensorRTEngine(engine_file, backend=TENSORRT, precision="int8") as engine,
    ):
        engine.run({"input": IMAGES})
    gc.collect()
    assert memory.live == (0, 0, 0, 0) and driver.context.depth == 0


def test_after_a_refused_shape_the_engine_runs_on(monkeypatch: pytest.MonkeyPatch, engine_file: Path) -> None:
    trt = FakeTensorRT("11.4", FakeMemory(), words="more than the profile's maximum")
    with open_engine(monkeypatch, engine_file, trt) as engine:
        engine.run({"input": IMAGES[:1]})
        trt.refuse = "shape"
        with pytest.raises(SbsError, match="more than the profile's maximum"):
            engine.run({"input": IMAGES})
        trt.refuse = None
        np.testing.assert_array_equal(engine.run({"input": IMAGES[:1]})["logits"], EXPECTED[:1])
        np.testing.assert_array_equal(engine.run({"input": IMAGES})["logits"], EXPECTED)
    assert trt.memory.live == (0, 0, 0, 0)


def test_times_of_layers_with_their_onnx_nodes(monkeypatch: pytest.MonkeyPatch, engine_file: Path) -> None:
    trt = FakeTensorRT("11.4", FakeMemory())
    with open_engine(monkeypatch, engine_file, trt) as engine:
        for runs in (1, 7):
            times = engine.node_times({"input": IMAGES}, runs)
            assert times == [
                NodeTime(name=name, kind=kind, ms=ms, quickest_ms=ms, nodes=nodes) for name, kind, ms, nodes in LAYERS
            ]
        launches = trt.memory.launches
        assert launches == 0, "a graph has no layers"
        trt.detailed = False
        assert {(time.kind, time.nodes) for time in engine.node_times({"input": IMAGES}, 2)} == {("", ())}
        np.testing.assert_array_equal(engine.run({"input": IMAGES})["logits"], EXPECTED)
        assert trt.memory.launches == 1, "the engine itself still runs its graph"


def test_one_slow_run_does_not_move_a_layers_time() -> None:
    times = {"conv1": [1.0, 1.0, 41.0, 1.0, 1.0], "loop": [0.5] * 10}
    found = trt_profile.node_times(times, {}, runs=5)
    assert [(one.name, one.ms) for one in found] == [("conv1", 1.0), ("loop", 1.0)], "the loop runs twice each time"


def test_the_real_profiler_class_can_be_derived_from() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    profiler = trt_profile.recording_profiler(trt)
    for name, ms in (("b", 1.0), ("a", 2.0), ("b", 3.0)):
        profiler.report_layer_time(name, ms)
    assert list(profiler.times_ms.items()) == [("b", [1.0, 3.0]), ("a", [2.0])]
    assert isinstance(profiler, trt.IProfiler)


def test_rtx_captures_itself_and_keeps_what_it_compiled(monkeypatch: pytest.MonkeyPatch, engine_file: Path) -> None:
    cache = runtime_cache_path(engine_file)
    for used, state in ((1, "new"), (2, "loaded")):
        trt = FakeTensorRTX(FakeMemory())
        with open_engine(monkeypatch, engine_file, trt) as engine:
            np.testing.assert_array_equal(engine.run({"input": IMAGES})["logits"], EXPECTED)
            assert engine.settings["cuda_graph"] == "rtx" and engine.settings["runtime_cache"] == state
            assert not cache.exists() or used > 1
        assert trt.strategies == [trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE] and trt.memory.launches == 0
        assert cache.read_bytes() == b"kernels %d" % used
    assert sorted(path.name for path in engine_file.parent.iterdir()) == [engine_file.name, cache.name]


def test_rtx_is_profiled_and_run_without_its_graphs(monkeypatch: pytest.MonkeyPatch, engine_file: Path) -> None:
    trt = FakeTensorRTX(FakeMemory())
    with open_engine(monkeypatch, engine_file, trt) as engine:
        assert [time.name for time in engine.node_times({"input": IMAGES}, 2)] == [name for name, *_ in LAYERS]
        assert [strategy.name for strategy in trt.strategies] == ["WHOLE_GRAPH_CAPTURE", "DISABLED"]
    trt = FakeTensorRTX(FakeMemory(), capturable=False)
    with open_engine(monkeypatch, engine_file, trt) as engine:
        engine.run({"input": IMAGES})
        assert engine.settings["cuda_graph"] == "off: tensorrt_rtx cannot capture this engine"
    with open_engine(monkeypatch, engine_file, trt, cuda_graph=False) as engine:
        engine.run({"input": IMAGES})
        assert engine.settings["cuda_graph"] == "off: asked for" and trt.strategies[-1].name == "DISABLED"


def test_a_damaged_runtime_cache_is_a_note_and_is_replaced(monkeypatch: pytest.MonkeyPatch, engine_file: Path) -> None:
    cache = runtime_cache_path(engine_file)
    cache.write_bytes(b"\x00garbage")
    with open_engine(monkeypatch, engine_file, FakeTensorRTX(FakeMemory())) as engine:
        assert engine.settings["runtime_cache"].startswith(f"ignored: {cache.name} is damaged")
        np.testing.assert_array_equal(engine.run({"input": IMAGES})["logits"], EXPECTED)
    assert cache.read_bytes() == b"kernels 1"


def test_a_cache_that_does_not_serialize_still_frees_the_device(
    monkeypatch: pytest.MonkeyPatch, engine_file: Path
) -> None:
    def fail(cache: Any) -> bytes:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("tests.fakes.FakeRuntimeCache.serialize", fail)
    trt = FakeTensorRTX(FakeMemory())
    with pytest.raises(RuntimeError, match="out of memory"), open_engine(monkeypatch, engine_file, trt) as engine:
        engine.run({"input": IMAGES})
    assert trt.memory.live == (0, 0, 0, 0)


def test_a_runtime_cache_that_cannot_be_written_is_no_error(monkeypatch: pytest.MonkeyPatch, engine_file: Path) -> None:
    runtime_cache_path(engine_file).mkdir()
    with open_engine(monkeypatch, engine_file, FakeTensorRTX(FakeMemory())) as engine:
        np.testing.assert_array_equal(engine.run({"input": IMAGES})["logits"], EXPECTED)


def test_what_we_ask_of_rtx_is_in_the_real_module() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    for owner, names in {
        trt.ICudaEngine: ("create_runtime_config", "create_engine_inspector", "num_io_tensors", "get_tensor_name"),
        trt.IRuntimeConfig: ("create_runtime_cache", "set_runtime_cache", "cuda_graph_strategy"),
        trt.IRuntimeCache: ("serialize", "deserialize"),
        trt.IExecutionContext: ("is_stream_capturable", "profiler", "set_tensor_address", "execute_async_v3"),
        trt.CudaGraphStrategy: ("WHOLE_GRAPH_CAPTURE", "DISABLED"),
        trt.DynamicShapesKernelSpecializationStrategy: ("EAGER",),
        trt.LayerInformationFormat: ("JSON",),
        trt.EngineInspector: ("get_engine_information", "execution_context"),
    }.items():
        assert [name for name in names if not hasattr(owner, name)] == []
    assert hasattr(trt.IRuntimeConfig, "dynamic_shapes_kernel_specialization_strategy")
