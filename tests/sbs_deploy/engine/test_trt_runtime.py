"""Running an engine, on fakes of pycuda, cuda-python and TensorRT whose memory is checked."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sbs_deploy.engine import trt_runtime
from sbs_deploy.engine.device import CudaPythonDevice, Device, PycudaDevice
from sbs_deploy.targets import TENSORRT
from sbs_train.contract.errors import SbsError
from tests.fakes import FakeMemory, FakeTensorRT, fake_cuda_runtime, fake_pycuda

IMAGES = np.arange(3 * 3 * 8 * 8, dtype=np.float32).reshape(3, 3, 8, 8)


def make_device(kind: str, memory: FakeMemory) -> Device:
    return PycudaDevice(fake_pycuda(memory)) if kind == "pycuda" else CudaPythonDevice(fake_cuda_runtime(memory))


@pytest.fixture
def engine_file(tmp_path: Path) -> Path:
    path = tmp_path / "model.int8.tensorrt.engine"
    path.write_bytes(b"plan")
    return path


def install(monkeypatch: pytest.MonkeyPatch, trt: Any, device: Device) -> None:
    monkeypatch.setattr(trt_runtime, "require_module", lambda target: trt)
    monkeypatch.setattr(trt_runtime, "open_device", lambda: device)


@pytest.mark.parametrize("version", ["10.13", "11.4"])
@pytest.mark.parametrize("kind", ["pycuda", "cuda-python"])
def test_run_and_time(monkeypatch: pytest.MonkeyPatch, engine_file: Path, kind: str, version: str) -> None:
    memory = FakeMemory()
    install(monkeypatch, FakeTensorRT(version, memory), make_device(kind, memory))
    with trt_runtime.TensorRTEngine(engine_file, target=TENSORRT, precision="int8") as engine:
        assert engine.device == "Fake GPU"
        expected = IMAGES.reshape(3, -1)[:, :10] * 2
        np.testing.assert_array_equal(engine.run(IMAGES), expected)
        np.testing.assert_array_equal(engine.run(IMAGES[:1] + 1), (IMAGES[:1].reshape(1, -1)[:, :10] + 1) * 2)
        assert engine.latency_ms(IMAGES) == {"pycuda": 1.5, "cuda-python": 2.0}[kind]
        np.testing.assert_array_equal(engine.run(IMAGES), expected)
    assert memory.buffers == {}, "every buffer is freed"


@pytest.mark.parametrize("step", ["deserialize", "context", "shape", "enqueue"])
def test_a_refusal_quotes_the_logger_and_frees_the_device(
    monkeypatch: pytest.MonkeyPatch, engine_file: Path, step: str
) -> None:
    memory = FakeMemory()
    driver = fake_pycuda(memory)
    trt = FakeTensorRT("11.4", memory, refuse=step, words="built for another chip")
    install(monkeypatch, trt, PycudaDevice(driver))
    with (
        pytest.raises(SbsError, match="built for another chip"),
        trt_runtime.TensorRTEngine(engine_file, target=TENSORRT, precision="int8") as engine,
    ):
        engine.run(IMAGES)
    assert memory.buffers == {} and driver.context.depth == 0


def test_no_device() -> None:
    with pytest.raises(SbsError, match="invalid device ordinal"):
        PycudaDevice(fake_pycuda(FakeMemory(), devices=0))
    with pytest.raises(SbsError, match="no CUDA-capable device"):
        CudaPythonDevice(fake_cuda_runtime(FakeMemory(), failing="cudaSetDevice"))


def test_cuda_errors_are_raised_with_their_words() -> None:
    device = CudaPythonDevice(fake_cuda_runtime(FakeMemory(), failing="cudaMalloc"))
    with pytest.raises(SbsError, match="cudaMalloc: no CUDA-capable device"):
        device.allocate(16)
