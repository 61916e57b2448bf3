"""The device layer on fakes of pycuda and cuda-python whose memory is checked and counted."""

import inspect
import sys
from typing import Any

import numpy as np
import pytest

from sbs_deploy.backends.tensorrt import cuda_graph, device_cuda_python
from sbs_deploy.backends.tensorrt import device as device_layer
from sbs_deploy.backends.tensorrt.device import Device, TensorMemory
from sbs_deploy.backends.tensorrt.device_cuda_python import CudaPythonDevice
from sbs_deploy.backends.tensorrt.device_pycuda import PycudaDevice
from sbs_train.contract.errors import SbsError
from tests.fake_cuda import FakeMemory, fake_cuda_runtime, fake_pycuda

KINDS = ("pycuda", "cuda-python")


def make_device(kind: str, memory: FakeMemory) -> Device:
    runtime = fake_cuda_runtime(memory)
    return PycudaDevice(fake_pycuda(memory), runtime) if kind == "pycuda" else CudaPythonDevice(runtime)


@pytest.mark.parametrize("kind", KINDS)
def test_tensor_memory_grows_reuses_and_is_given_back(kind: str) -> None:
    memory = FakeMemory()
    with make_device(kind, memory) as device:
        tensor = TensorMemory(device)
        for count in (3, 8, 2, 8, 5):
            tensor.resize((count, 4))
            sent = np.arange(4 * count, dtype=np.float32).reshape(count, 4)
            tensor.host[...] = sent
            tensor.upload()
            tensor.host[...] = 0
            tensor.download()
            np.testing.assert_array_equal(tensor.host, sent)
            assert memory.live[:2] == (1, 1)
        assert {len(buffer) for buffer in memory.buffers.values()} == {8 * 4 * 4}, "of the largest shape"
        tensor.close()
        tensor.close()
        assert memory.live == (0, 0, 0, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_closing_frees_what_was_not_given_back(kind: str) -> None:
    memory = FakeMemory()
    with make_device(kind, memory) as device:
        device.allocate(16)
        device.pin(16)
        event = device.event(spin=True)
        assert memory.live == (1, 1, 1, 0)
    del event
    assert memory.live == (0, 0, 0, 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spin", [True, False])
def test_the_host_spins_or_sleeps_as_the_event_says(kind: str, spin: bool) -> None:
    memory = FakeMemory()
    with make_device(kind, memory) as device:
        event = device.event(spin=spin)
        device.record(event)
        device.wait(event)
    assert (memory.asked, memory.slept) == ((2, 0) if spin else (0, 1))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_captured_runs_at_each_launch(kind: str) -> None:
    memory, ran = FakeMemory(), []
    with make_device(kind, memory) as device:
        graph = device.capture(lambda: memory.enqueue(lambda: ran.append(1)))
        assert ran == [] and memory.live[3] == 1, "the template of a graph is not kept"
        graph.launch()
        graph.launch()
        assert ran == [1, 1]
        graph.close()
    assert memory.live == (0, 0, 0, 0)


@pytest.mark.parametrize(
    "failing", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate", "enqueue"]
)
def test_a_failed_capture_leaves_nothing_behind(failing: str) -> None:
    memory = FakeMemory()
    device = CudaPythonDevice(fake_cuda_runtime(memory, failing=None if failing == "enqueue" else failing))

    def enqueue() -> None:
        memory.enqueue(lambda: None)
        if failing == "enqueue":
            raise SbsError("enqueue: cannot be captured")

    with pytest.raises(SbsError, match=failing):
        device.capture(enqueue)
    assert memory.capturing is None and memory.live == (0, 0, 0, 0)


def test_pycuda_alone_has_no_graphs_and_says_so() -> None:
    with (
        PycudaDevice(fake_pycuda(FakeMemory())) as device,
        pytest.raises(SbsError, match="pip install cuda-python"),
    ):
        device.capture(lambda: None)


def test_the_binding_that_is_installed_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = FakeMemory()
    runtime, driver = fake_cuda_runtime(memory), fake_pycuda(memory)
    monkeypatch.setattr(device_layer, "_cuda_runtime", lambda: runtime)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with device_layer.open_device() as device:
        assert isinstance(device, CudaPythonDevice)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "pycuda", driver)
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    with device_layer.open_device() as device:
        assert isinstance(device, PycudaDevice) and device.name == "Fake GPU"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(device_layer, "_cuda_runtime", lambda: None)
    with pytest.raises(SbsError, match="pip install pycuda"):
        device_layer.open_device()


def test_no_device() -> None:
    with pytest.raises(SbsError, match="invalid device ordinal"):
        PycudaDevice(fake_pycuda(FakeMemory(), devices=0))
    with pytest.raises(SbsError, match="no CUDA-capable device"):
        CudaPythonDevice(fake_cuda_runtime(FakeMemory(), failing="cudaSetDevice"))


def test_cuda_errors_are_raised_with_their_words() -> None:
    with pytest.raises(SbsError, match="cudaMalloc: no CUDA-capable device"):
        CudaPythonDevice(fake_cuda_runtime(FakeMemory(), failing="cudaMalloc")).allocate(16)
    with pytest.raises(SbsError, match="Fake GPU: cuMemAlloc failed: out of memory"):
        PycudaDevice(fake_pycuda(FakeMemory(), failing="mem_alloc")).allocate(16)


def test_a_device_that_fails_to_open_leaves_its_context() -> None:
    driver = fake_pycuda(FakeMemory(), failing="Stream")
    with pytest.raises(SbsError, match="cuStreamCreate"):
        PycudaDevice(driver)
    assert driver.context.depth == 0


def test_what_we_call_is_in_the_real_cuda_python() -> None:
    runtime: Any = pytest.importorskip("cuda.bindings.runtime")
    source = inspect.getsource(cuda_graph) + inspect.getsource(device_cuda_python)
    fake = fake_cuda_runtime(FakeMemory())
    used = [name for name in vars(fake) if name in source]
    assert len(used) == len(vars(fake)), "the fake has what nobody calls"
    assert [name for name in used if not hasattr(runtime, name)] == []
    assert int(runtime.cudaError_t.cudaErrorNotReady) == fake.cudaError_t.cudaErrorNotReady
    # The real functions take these arguments; with no driver they answer so instead of raising.
    for name, arguments in {
        "cudaHostAlloc": (16, runtime.cudaHostAllocDefault),
        "cudaEventCreateWithFlags": (runtime.cudaEventBlockingSync,),
        "cudaStreamCreate": (),
    }.items():
        error, value = getattr(runtime, name)(*arguments)
        assert int(error) == 0 or value is None
