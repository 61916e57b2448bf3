"""Stand-ins for pycuda and cuda-python on one fake GPU.

Its memory is checked: an address that was not allocated, a freed buffer or a copy that is too long raises, and so do
copies and waiting while the stream is captured. What was made and not given back can be counted.
"""

import ctypes
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

NOT_READY = 600
Work = Callable[[], None]


class FakeMemory:
    """Memory of the device by address, and everything else that has to be given back."""

    def __init__(self) -> None:
        self.buffers: dict[int, bytearray] = {}
        self.pinned: dict[int, Any] = {}
        self.events: Any = weakref.WeakSet()
        self.graphs: set[Any] = set()
        self.capturing: list[Work] | None = None
        """What the stream was given since its capture began."""
        self.launches = 0
        self.slept = self.asked = 0
        """How often the host waited in either way."""
        self.next = 0x1000

    @property
    def live(self) -> tuple[int, int, int, int]:
        """Numbers of buffers, page-locked allocations, events and graphs."""
        return len(self.buffers), len(self.pinned), len(self.events), len(self.graphs)

    def allocate(self, size: int) -> int:
        address, self.next = self.next, self.next + size + 256
        self.buffers[address] = bytearray(size)
        return address

    def write(self, address: int, data: bytes) -> None:
        assert len(data) <= len(self.buffers[address]), "copy beyond the end of a buffer"
        self.buffers[address][: len(data)] = data

    def read(self, address: int, size: int) -> bytes:
        assert size <= len(self.buffers[address]), "copy beyond the end of a buffer"
        return bytes(self.buffers[address][:size])

    def enqueue(self, work: Work) -> None:
        """Done at once, or captured."""
        if self.capturing is None:
            work()
        else:
            self.capturing.append(work)

    def is_pinned(self, address: int, size: int) -> bool:
        return any(start <= address and address + size <= start + len(memory) for start, memory in self.pinned.items())


class FakeEvent:
    """The first time somebody asks for it, it has not passed yet."""

    def __init__(self, memory: FakeMemory, flags: int) -> None:
        self.memory, self.flags, self.at, self.asked = memory, flags, 0, 0
        memory.events.add(self)

    def set(self, at: int) -> None:
        self.at, self.asked = at, 0

    def passed(self) -> bool:
        assert self.memory.capturing is None, "nobody waits in a capture"
        assert self.flags == 0, "one does not ask for an event to sleep on"
        self.asked += 1
        self.memory.asked += 1
        return self.asked > 1

    def sleep(self) -> None:
        assert self.memory.capturing is None, "nobody waits in a capture"
        assert self.flags == 1, "only an event to sleep on lets the host sleep"
        self.memory.slept += 1


def fake_pycuda(memory: FakeMemory, *, devices: int = 1, step_ms: float = 1.5, failing: str | None = None) -> Any:
    """A module like pycuda.driver; each event is `step_ms` after the one before. `failing` names what raises."""

    class Error(Exception):
        pass

    class Allocation:
        def __init__(self, size: int) -> None:
            self.address = memory.allocate(size)

        def __int__(self) -> int:
            return self.address

        def free(self) -> None:
            del memory.buffers[self.address]

    class Pinned:
        def __init__(self, size: int) -> None:
            self.data = ctypes.create_string_buffer(size)
            self.address = ctypes.addressof(self.data)
            self.__array_interface__ = {"data": (self.address, False), "shape": (size,), "typestr": "|u1", "version": 3}
            memory.pinned[self.address] = self.data

        def free(self) -> None:
            del memory.pinned[self.address]

    class Stream:
        handle = 77

        def __init__(self) -> None:
            if failing == "Stream":
                raise Error("cuStreamCreate failed: out of memory")

    class Event(FakeEvent):
        count = 0

        def __init__(self, flags: int = 0) -> None:
            super().__init__(memory, flags)

        def record(self, stream: Stream) -> None:
            Event.count += 1
            self.set(Event.count)

        query = FakeEvent.passed
        synchronize = FakeEvent.sleep

        def time_since(self, other: "Event") -> float:
            return (self.at - other.at) * step_ms

    class Device:
        def __init__(self, index: int) -> None:
            if index >= devices:
                raise Error("cuDeviceGet failed: invalid device ordinal")

        def name(self) -> str:
            return "Fake GPU"

        def retain_primary_context(self) -> Any:
            return module.context

    def allocate(size: int) -> Allocation:
        if failing == "mem_alloc":
            raise Error("cuMemAlloc failed: out of memory")
        return Allocation(size)

    def upload(address: int, array: np.ndarray, stream: Stream) -> None:
        assert memory.is_pinned(array.ctypes.data, array.nbytes), "a copy from pageable memory waits"
        assert memory.capturing is None
        memory.write(address, array.tobytes())

    def download(array: np.ndarray, address: int, stream: Stream) -> None:
        assert memory.is_pinned(array.ctypes.data, array.nbytes), "a copy to pageable memory waits"
        assert memory.capturing is None
        array[...] = np.frombuffer(memory.read(address, array.nbytes), array.dtype).reshape(array.shape)

    module = SimpleNamespace(
        Error=Error,
        Device=Device,
        Stream=Stream,
        Event=Event,
        event_flags=SimpleNamespace(DEFAULT=0, BLOCKING_SYNC=1),
        init=lambda: None,
        mem_alloc=allocate,
        pagelocked_empty=lambda shape, dtype: np.asarray(Pinned(shape[0])),
        memcpy_htod_async=upload,
        memcpy_dtoh_async=download,
        context=SimpleNamespace(depth=0),
    )
    module.context.push = lambda: setattr(module.context, "depth", module.context.depth + 1)
    module.context.pop = lambda: setattr(module.context, "depth", module.context.depth - 1)
    return module


def fake_cuda_runtime(memory: FakeMemory, *, failing: str | None = None) -> Any:
    """A module like cuda.bindings.runtime: every call answers (error, value …); `failing` names one that fails."""
    clock = SimpleNamespace(now=0)
    to_device, to_host = 1, 2
    held: list[FakeEvent] = []

    def copy(destination: int, source: int, size: int, kind: int, stream: int) -> tuple[int]:
        assert memory.capturing is None
        assert memory.is_pinned(source if kind == to_device else destination, size), "pageable memory waits"
        if kind == to_device:
            memory.write(destination, ctypes.string_at(source, size))
        else:
            ctypes.memmove(destination, memory.read(source, size), size)
        return (0,)

    def record(event: FakeEvent, stream: int) -> tuple[int]:
        clock.now += 1
        event.set(clock.now)
        return (0,)

    def create_event(flags: int) -> tuple[int, FakeEvent]:
        held.append(FakeEvent(memory, flags))  # alive until it is destroyed
        return 0, held[-1]

    def begin_capture(stream: int, mode: str) -> tuple[int]:
        assert memory.capturing is None and stream and mode == "thread local"
        memory.capturing = []
        return (0,)

    def end_capture(stream: int) -> tuple[int, Any]:
        graph = tuple(memory.capturing or ())
        memory.capturing = None
        memory.graphs.add(graph)
        return 0, graph

    def instantiate(graph: Any, flags: int) -> tuple[int, Any]:
        executable = SimpleNamespace(work=graph)
        memory.graphs.add(key := id(executable))
        executable.key = key
        return 0, executable

    def launch(graph: Any, stream: int) -> tuple[int]:
        assert graph.key in memory.graphs and memory.capturing is None
        memory.launches += 1
        for work in graph.work:
            work()
        return (0,)

    def pin(size: int, flags: int) -> tuple[int, int]:
        data = ctypes.create_string_buffer(size)
        memory.pinned[ctypes.addressof(data)] = data
        return 0, ctypes.addressof(data)

    def done(change: Callable[..., Any]) -> Callable[..., tuple[int]]:
        return lambda *arguments: (change(*arguments), (0,))[1]

    calls = {
        "cudaSetDevice": lambda index: (0,),
        "cudaGetDeviceProperties": lambda index: (0, SimpleNamespace(name=b"Fake GPU\0\0")),
        "cudaStreamCreate": lambda: (0, 88),
        "cudaStreamDestroy": lambda stream: (0,),
        "cudaMalloc": lambda size: (0, memory.allocate(size)),
        "cudaFree": done(lambda address: memory.buffers.pop(address)),
        "cudaHostAlloc": pin,
        "cudaFreeHost": done(lambda address: memory.pinned.pop(address)),
        "cudaMemcpyAsync": copy,
        "cudaEventCreateWithFlags": create_event,
        "cudaEventRecord": record,
        "cudaEventQuery": lambda event: (0 if event.passed() else NOT_READY,),
        "cudaEventSynchronize": done(lambda event: event.sleep()),
        "cudaEventElapsedTime": lambda start, end: (0, 2.0 * (end.at - start.at)),
        "cudaEventDestroy": done(lambda event: held.remove(event)),
        "cudaStreamBeginCapture": begin_capture,
        "cudaStreamEndCapture": end_capture,
        "cudaGraphInstantiate": instantiate,
        "cudaGraphLaunch": launch,
        "cudaGraphDestroy": done(lambda graph: memory.graphs.remove(graph)),
        "cudaGraphExecDestroy": done(lambda graph: memory.graphs.remove(graph.key)),
        "cudaGetLastError": lambda: (0,),
        "cudaGetErrorString": lambda error: (0, b"no CUDA-capable device is detected"),
    }
    if failing is not None:
        real = calls[failing]

        def fail(*arguments: Any) -> tuple[int, None]:
            if failing == "cudaStreamEndCapture":  # ends it all the same, and there is no graph
                memory.graphs.remove(real(*arguments)[1])
            return (100, None)

        calls[failing] = fail
    return SimpleNamespace(
        cudaMemcpyKind=SimpleNamespace(cudaMemcpyHostToDevice=to_device, cudaMemcpyDeviceToHost=to_host),
        cudaError_t=SimpleNamespace(cudaErrorNotReady=NOT_READY),
        cudaStreamCaptureMode=SimpleNamespace(cudaStreamCaptureModeThreadLocal="thread local"),
        cudaEventDefault=0,
        cudaEventBlockingSync=1,
        cudaHostAllocDefault=0,
        **calls,
    )
