"""A TensorRT engine on a GPU: deserialized, fed and timed with device events."""

from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from typing_extensions import Self

from sbs_deploy.engine import trt_log
from sbs_deploy.engine.base import FloatArray
from sbs_deploy.engine.device import Device, open_device
from sbs_deploy.names import INPUT, OUTPUT
from sbs_deploy.targets import Target, require_module
from sbs_train.contract import rundir
from sbs_train.contract.errors import SbsError


class TensorRTEngine:
    """An engine file of any of the three modules.

    Raises:
        SbsError: no GPU, a damaged file, or a chip or version the engine was not built for.
    """

    def __init__(self, path: Path, *, target: Target, precision: str) -> None:
        self.name = path.name
        self.precision = precision
        trt = require_module(target)
        self._trt: Any = trt
        self._device: Device = open_device()
        self.device = self._device.name
        self._shape: tuple[int, ...] = ()
        self._output_shape: tuple[int, ...] = ()
        try:
            mark = trt_log.mark(trt)
            try:
                self._runtime = trt.Runtime(trt_log.recording_logger(trt))
            except TypeError as error:
                raise trt_log.refused(trt, mark, "has no runtime on this machine") from error
            if _version_compatible(path) and hasattr(self._runtime, "engine_host_code_allowed"):
                self._runtime.engine_host_code_allowed = True  # such a plan brings the runtime it was built with
            self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
            if self._engine is None:
                raise trt_log.refused(trt, mark, f"cannot load {path.name} on {self.device}")
            self._context = self._engine.create_execution_context()
            if self._context is None:
                raise trt_log.refused(trt, mark, f"cannot run {path.name} on {self.device}")
        except BaseException:
            self._device.__exit__(None, None, None)
            raise

    def run(self, inputs: FloatArray) -> FloatArray:
        """Logits (N, classes) of images (N, C, H, W)."""
        self._bind(inputs)
        self._enqueue()
        logits = np.empty(self._output_shape, np.float32)
        self._device.download(logits, self._output)
        return logits

    def latency_ms(self, inputs: FloatArray) -> float:
        """Milliseconds on the GPU for one inference whose input is there already; transfers do not count."""
        if inputs.shape != self._shape:
            self._bind(inputs)
        start = self._device.record()
        self._enqueue()
        end = self._device.record()
        self._device.synchronize()
        return self._device.elapsed_ms(start, end)

    def _bind(self, inputs: FloatArray) -> None:
        if inputs.shape != self._shape:
            mark = trt_log.mark(self._trt)
            if not self._context.set_input_shape(INPUT, inputs.shape):
                raise trt_log.refused(self._trt, mark, f"does not take the shape {inputs.shape}")
            self._output_shape = tuple(int(size) for size in self._context.get_tensor_shape(OUTPUT))
            self._input = self._device.allocate(inputs.nbytes)
            self._output = self._device.allocate(4 * int(np.prod(self._output_shape)))
            for name, address in ((INPUT, self._input), (OUTPUT, self._output)):
                dtype = np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name)))
                if dtype != np.float32:
                    raise SbsError(f"{self.name}: tensor {name} is {dtype}, not float32; build the engine again")
                self._context.set_tensor_address(name, address)
            self._shape = inputs.shape
        self._device.upload(self._input, np.asarray(inputs, np.float32))

    def _enqueue(self) -> None:
        mark = trt_log.mark(self._trt)
        if not self._context.execute_async_v3(self._device.stream):
            raise trt_log.refused(self._trt, mark, f"failed to run {self.name}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._context = self._engine = self._runtime = None
        self._device.__exit__(kind, error, trace)


def _version_compatible(path: Path) -> bool:
    """Whether the engine was built with `--version-compatible`."""
    if not rundir.manifest_path(path).is_file():
        return False
    return bool(rundir.read_manifest(path).details.get("settings", {}).get("version_compatible"))
