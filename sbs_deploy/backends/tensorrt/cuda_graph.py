"""CUDA graphs through cuda-python's runtime API, of a stream that any binding made.

One launch of a graph replaces the launches of all kernels of an inference, which on small networks take the host longer
than the kernels take the GPU.
"""

import contextlib
from collections.abc import Callable
from typing import Any

from sbs_train.contract.errors import SbsError


class CapturedGraph:
    """What `enqueue` puts on a stream, captured without being run.

    Raises:
        SbsError: something in it cannot be captured. The stream is as before.
    """

    def __init__(self, runtime: Any, stream: int, enqueue: Callable[[], None]) -> None:
        self._runtime, self._stream = runtime, stream
        self._graph: Any = _instantiated(runtime, _captured(runtime, stream, enqueue))

    def launch(self) -> None:
        """Put it on the stream."""
        cuda_call(self._runtime, "cudaGraphLaunch", self._graph, self._stream)

    def close(self) -> None:
        """Free it."""
        cuda_call(self._runtime, "cudaGraphExecDestroy", self._graph)


def cuda_call(runtime: Any, function: str, *arguments: Any) -> Any:
    """cuda-python answers (error, value …); the value, or an SbsError with CUDA's words."""
    error, *values = getattr(runtime, function)(*arguments)
    if int(error) != 0:
        _, words = runtime.cudaGetErrorString(error)
        raise SbsError(f"{function}: {words.decode() if isinstance(words, bytes) else words}")
    return values[0] if values else None


def _captured(runtime: Any, stream: int, enqueue: Callable[[], None]) -> Any:
    # Of this thread alone: what other threads do to the device is theirs.
    mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    cuda_call(runtime, "cudaStreamBeginCapture", stream, mode)
    try:
        enqueue()
    except BaseException:
        # The stream leaves capture mode only so; the error that counts is the one above.
        with contextlib.suppress(SbsError):
            graph = cuda_call(runtime, "cudaStreamEndCapture", stream)
            if graph is not None:
                cuda_call(runtime, "cudaGraphDestroy", graph)
        runtime.cudaGetLastError()  # which would else be reported by the next call that asks
        raise
    try:
        return cuda_call(runtime, "cudaStreamEndCapture", stream)
    except SbsError:
        runtime.cudaGetLastError()
        raise


def _instantiated(runtime: Any, graph: Any) -> Any:
    try:
        return cuda_call(runtime, "cudaGraphInstantiate", graph, 0)
    finally:
        cuda_call(runtime, "cudaGraphDestroy", graph)
