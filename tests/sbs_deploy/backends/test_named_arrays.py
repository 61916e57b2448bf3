"""Networks with several inputs and outputs on every backend, against NumPy."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from sbs_deploy.backends.base import Engine
from sbs_deploy.backends.onnxruntime.engine import OnnxRuntimeEngine, SessionSettings
from sbs_deploy.backends.request import AxisSizes, BatchProfile, Request, sizes_of_axes
from sbs_deploy.backends.runtime import build_engine
from sbs_deploy.backends.spec import ONNXRUNTIME, OPENVINO, TENSORRT, TENSORRT_RTX, import_problem
from sbs_deploy.backends.tensorrt import engine as tensorrt_engine
from sbs_deploy.backends.tensorrt.build import engine_from_onnx
from sbs_deploy.backends.tensorrt.device_cuda_python import CudaPythonDevice
from sbs_deploy.backends.tensorrt.engine import TensorRTEngine
from sbs_deploy.graph.arrays import ArraySpec, described
from sbs_deploy.graph.run import outputs_of
from sbs_deploy.legalise.half import half_precision
from sbs_deploy.legalise.ranges import beyond_float16
from sbs_deploy.legalise.single import precisions, with_float16_range
from sbs_train.contract.errors import SbsError
from tests.fake_cuda import FakeMemory, fake_cuda_runtime
from tests.fakes import FakeContext, FakeTensorRT

TABLE = np.arange(15, dtype=np.float32).reshape(5, 3)
GRAPH = """<ir_version: 10, opset_import: ["" : 21]>
g (float[batch, 3, height, 4] image, int64[batch] word, bool[batch] mask)
=> (float[batch, height, 4, 3] last, float[batch] number, int64[batch] next, bool[batch] either)
<float[5, 3] table, int64[1] axis = {1}, int64[2] axes = {2, 3}, int64 one = {1}, int64[1] last_axis = {1}> {
  row = Gather(table, word)
  row3 = Unsqueeze(row, axes)
  y = Mul(image, row3)
  last = Transpose<perm = [0, 2, 3, 1]>(y)
  mean = ReduceMean<keepdims = 0>(y, axes)
  number = ReduceSum<keepdims = 0>(mean, axis)
  next = Add(word, one)
  positive = Greater(word, one)
  either = Or(positive, mask)
}"""


def graph() -> onnx.ModelProto:
    model = onnx.parser.parse_model(GRAPH)
    model.graph.initializer.append(onnx.numpy_helper.from_array(TABLE, "table"))
    onnx.checker.check_model(model, full_check=True)
    return model


def inputs(samples: int, height: int = 5) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(samples)
    return {
        "image": rng.standard_normal((samples, 3, height, 4)).astype(np.float32),
        "word": rng.integers(0, 5, samples),
        "mask": rng.integers(0, 2, samples).astype(bool),
    }


def expected(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    y = given["image"] * TABLE[given["word"]][:, :, None, None]
    return {
        "last": y.transpose(0, 2, 3, 1),
        "number": y.mean((2, 3)).sum(1),
        "next": given["word"] + 1,
        "either": (given["word"] > 1) | given["mask"],
    }


def check(found: dict[str, np.ndarray], given: dict[str, np.ndarray], tolerance: float = 1e-5) -> None:
    wanted = expected(given)
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        if array.dtype.kind == "f":
            np.testing.assert_allclose(found[name], array, rtol=tolerance, atol=tolerance * np.abs(array).max())
        else:
            np.testing.assert_array_equal(found[name], array)


@contextlib.contextmanager
def onnxruntime(path: Path) -> Iterator[Engine]:
    pytest.importorskip("onnxruntime")
    with OnnxRuntimeEngine(path, SessionSettings(precision="fp32")) as engine:
        yield engine


@contextlib.contextmanager
def openvino(path: Path) -> Iterator[Engine]:
    pytest.importorskip("openvino")
    from sbs_deploy.backends.openvino.engine import OpenVinoEngine

    with OpenVinoEngine(path, precision="fp32") as engine:
        yield engine


@pytest.mark.parametrize("opened", [onnxruntime, openvino])
def test_engines_that_run_onnx_files(opened: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(graph(), path)
    with opened(path) as engine:
        assert described(engine.inputs) == "image float32 (batch, 3, height, 4), word int64 (batch), mask bool (batch)"
        assert [(spec.name, spec.dtype, spec.shape) for spec in engine.outputs] == [
            ("last", "float32", ("batch", "height", 4, 3)),
            ("number", "float32", ("batch",)),
            ("next", "int64", ("batch",)),
            ("either", "bool", ("batch",)),
        ]
        for samples, height in ((1, 5), (4, 5), (4, 9), (1, 5)):  # compiled for one size at a time, and again
            given = inputs(samples, height)
            first = engine.run(given)
            check(first, given)
            assert engine.latency_ms(given) > 0
            engine.run({**given, "word": np.zeros(samples, np.int64)})
            check(first, given)  # results share no memory
        assert engine.node_times(inputs(2), 2)
        for wrong in ({"mask": np.ones(3)}, {"word": np.zeros(2, np.int64)}):
            with pytest.raises(SbsError, match=r"takes image float32 \(batch, 3, height, 4\), word int64"):
                engine.latency_ms({**inputs(3), **wrong})
        check(engine.run(inputs(3)), inputs(3))


@pytest.mark.parametrize("backend", [ONNXRUNTIME, OPENVINO], ids=lambda one: one.name)
def test_engines_are_built_with_a_trial_at_the_usual_size(backend: Any, tmp_path: Path) -> None:
    if import_problem(backend) is not None:
        pytest.skip(f"needs {backend.name}")
    path = tmp_path / "model.onnx"
    onnx.save(graph(), path)
    axes = {"height": AxisSizes(min=1, opt=6, max=6)}
    request = Request(backend=backend, precision="fp32", axes=axes)
    built = build_engine(path, tmp_path / "model.fp32.onnx", request, made_from={})
    assert built.details["max_abs_diff_to_source"] < 1e-4


@pytest.mark.skipif(import_problem(TENSORRT_RTX) is not None, reason="needs tensorrt-rtx")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_tensorrt_builds_for_the_sizes_of_open_axes(precision: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(graph() if precision == "fp32" else half_precision(graph()), path)
    request = Request(backend=TENSORRT_RTX, precision=precision, profile=BatchProfile(opt=2, max=4))
    with pytest.raises(SbsError, match="image has the open axis height.*--shapes height=LEAST:LARGEST"):
        build_engine(path, tmp_path / "model.engine", request, made_from={})
    axes = {"height": AxisSizes(min=4, opt=5, max=9)}
    request = Request(backend=TENSORRT_RTX, precision=precision, axes=axes)
    built = build_engine(path, tmp_path / "model.engine", request, made_from={})
    assert built.details["shapes"]["last"] == ["batch", "height", 4, 3]
    assert built.details["axes"] == {"height": [4, 5, 9]}


def test_the_profile_has_every_input() -> None:
    trt: Any = FakeTensorRT("10.13", FakeMemory())
    axes = {"height": AxisSizes(min=4, opt=5, max=9)}
    request = Request(backend=TENSORRT, precision="fp32", axes=axes, profile=BatchProfile(opt=2, max=8))
    engine_from_onnx(trt, graph(), "m.onnx", request)
    assert trt.profiles == [
        ("image", (1, 3, 4, 4), (2, 3, 5, 4), (8, 3, 9, 4)),
        ("word", (1,), (2,), (8,)),
        ("mask", (1,), (2,), (8,)),
    ]


class TwoContext(FakeContext):
    """Computes y = x * n, in float32, and m = n + 1, in int64."""

    def __init__(self, trt: FakeTensorRT) -> None:
        super().__init__(trt)
        self.shapes: dict[str, tuple[int, ...]] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = self.shapes[{"x": "y", "n": "m"}[name]] = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def execute_async_v3(self, stream: int) -> bool:
        memory, count, where = self.trt.memory, self.shapes["n"][0], self.addresses

        def work() -> None:
            x = np.frombuffer(memory.read(where["x"], 8 * count), np.float32).reshape(count, 2)
            n = np.frombuffer(memory.read(where["n"], 8 * count), np.int64)
            memory.write(where["y"], (x * n[:, None]).astype(np.float32).tobytes())
            memory.write(where["m"], (n + 1).tobytes())

        memory.enqueue(work)
        return True


class TwoTensors(FakeTensorRT):
    """An engine with two inputs and two outputs."""

    def _engine(self) -> Any:
        names = ("n", "x", "y", "m")
        modes = self.TensorIOMode
        return SimpleNamespace(
            create_execution_context=lambda: TwoContext(self),
            num_io_tensors=4,
            get_tensor_name=lambda index: names[index],
            get_tensor_dtype=lambda name: np.int64 if name in "nm" else np.float32,
            get_tensor_shape=lambda name: (-1,) if name in "nm" else (-1, 2),
            get_tensor_mode=lambda name: modes.INPUT if name in "nx" else modes.OUTPUT,
        )


def test_tensorrt_moves_every_tensor_in_its_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = FakeMemory()
    trt = TwoTensors("10.13", memory)
    monkeypatch.setattr(tensorrt_engine, "open_device", lambda: CudaPythonDevice(fake_cuda_runtime(memory)))
    monkeypatch.setattr(tensorrt_engine, "require_module", lambda backend: trt)
    path = tmp_path / "model.engine"
    path.write_bytes(b"a plan")
    with TensorRTEngine(path, backend=TENSORRT, precision="fp32") as engine:
        assert engine.inputs == (
            ArraySpec(name="n", dtype="int64", shape=("batch",)),
            ArraySpec(name="x", dtype="float32", shape=("batch", 2)),
        )
        for count in (2, 5, 1):
            x, n = np.arange(2 * count, dtype=np.float32).reshape(count, 2), np.arange(count) * 10**10
            found = engine.run({"x": x, "n": n})
            np.testing.assert_array_equal(found["y"], (x * n[:, None]).astype(np.float32))
            np.testing.assert_array_equal(found["m"], n + 1)
            assert engine.latency_ms({"x": x, "n": n}) > 0
        with pytest.raises(SbsError, match=r"takes n int64 \(batch\), x float32 \(batch, 2\); n is int32"):
            engine.run({"x": x, "n": n.astype(np.int32)})
    assert not memory.buffers and not memory.pinned


def test_integers_and_booleans_pass_float16_unharmed() -> None:
    given = inputs(6)
    for model in (half_precision(graph()), *precisions(graph()), with_float16_range(half_precision(graph()))):
        check(outputs_of(model, given), given, tolerance=1e-2)
    assert not beyond_float16(graph(), given)
    large = {**given, "image": given["image"] * 1e4}
    assert {"image", "y"} <= beyond_float16(graph(), large)
    kept = half_precision(graph(), beyond_float16(graph(), large))
    check(outputs_of(kept, large), large, tolerance=1e-2)


@pytest.mark.parametrize("text", ["height", "height=4", "=4:5", "height=4:x", "height=4:5:6", "height=-4:5"])
def test_sizes_of_axes_are_checked(text: str) -> None:
    with pytest.raises(SbsError, match=f"--shapes {text}"):
        sizes_of_axes([text])
    assert sizes_of_axes(["height=4:8", "w=1:1"]) == {"height": (4, 8), "w": (1, 1)}
