"""CUDA graphs through cuda-python's runtime API, on a stream of any binding.

One launch of a graph replaces the launches of all kernels of an inference, which in small networks take longer than
the kernels themselves.
"""

import contextlib
from collections.abc import Callable
from typing import Any

from sbs_train.contract.errors import SbsError


class CapturedGraph:
    """The work that `enqueue` puts on a stream, captured without running it.

    Raises:
        SbsError: the work cannot be captured. The stream is then as before.
    """

    def __init__(self, runtime: Any, stream: int, enqueue: Callable[[], None]) -> None:
        self._runtime, self._stream = runtime, stream
        self._graph: Any = _instantiated(runtime, _captured(runtime, stream, enqueue))

    def launch(self) -> None:
        """Launch the graph on the stream."""
        cuda_call(self._runtime, "cudaGraphLaunch", self._graph, self._stream)

    def close(self) -> None:
        """Free the graph."""
        cuda_call(self._runtime, "cudaGraphExecDestroy", self._graph)


def cuda_call(runtime: Any, function: str, *arguments: Any) -> Any:
    """Call a function of cuda-python, which returns (error, value …); returns the value, or raises SbsError."""
    error, *values = getattr(runtime, function)(*arguments)
    if int(error) != 0:
        _, words = runtime.cudaGetErrorString(error)
        raise SbsError(f"{function}: {words.decode() if isinstance(words, bytes) else words}")
    return values[0] if values else None


def _captured(runtime: Any, stream: int, enqueue: Callable[[], None]) -> Any:
    # Capture calls of this thread only.
    mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    cuda_call(runtime, "cudaStreamBeginCapture", stream, mode)
    try:
        enqueue()
    except BaseException:
        # Needed to leave capture mode; the first error is the one to report.
        with contextlib.suppress(SbsError):
            graph = cuda_call(runtime, "cudaStreamEndCapture", stream)
            if graph is not None:
                cuda_call(runtime, "cudaGraphDestroy", graph)
        runtime.cudaGetLastError()  # otherwise a later call would report the error
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
