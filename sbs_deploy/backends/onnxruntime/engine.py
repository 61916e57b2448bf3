"""Sessions of ONNX Runtime, and an engine that runs a session."""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from typing_extensions import Self

from sbs_deploy.backends.base import NodeTime
from sbs_deploy.backends.onnxruntime.profile import node_times_of
from sbs_deploy.backends.onnxruntime.providers import CPU, Provider, open_session
from sbs_deploy.backends.products import exact_graph, pairs_saturate
from sbs_deploy.backends.spec import ONNXRUNTIME, require_module
from sbs_deploy.graph.arrays import Arrays, ArraySpec, Named, checked, open_axis
from sbs_deploy.graph.run import Optimization
from sbs_deploy.machine import clocks
from sbs_train.contract import rundir
from sbs_train.contract.errors import SbsError

if TYPE_CHECKING:
    import onnxruntime

SPINNING = True
"""Whether idle threads of an operator wait actively: ONNX Runtime's default, fixed for all versions."""


QUOTED_CHARACTERS = 400
_TYPES = {"float": "float32", "double": "float64"}
"""NumPy's names of types that ONNX Runtime calls otherwise."""


@dataclass(frozen=True, kw_only=True)
class SessionSettings:
    """Settings of a session."""

    precision: str = "int8"
    """Precision of the model: int8, fp16 or fp32."""
    threads: int = 1
    """Threads inside an operator; 0 for one per core."""
    provider: Provider = CPU
    cache: Path | None = None
    """Directory for code that a GPU's provider compiles."""
    optimization: Optimization = "all"
    exact: bool = True
    """Whether integer products are exact on a processor where they saturate."""


USUAL = SessionSettings()


def make_session(
    model: Path, settings: SessionSettings = USUAL, *, save_to: Path | None = None, profile: Path | None = None
) -> "onnxruntime.InferenceSession":
    """A session of an ONNX file.

    Args:
        save_to: where to write the optimized graph.
        profile: prefix of the file name of a trace with times of nodes.

    Raises:
        SbsError: the model is damaged, or the requested provider is not in use.
    """
    ort, provider = require_module(ONNXRUNTIME), settings.provider
    content = rundir.read_recorded(model, "sbs-deploy export")
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # logged errors are raised as well
    level, optimized = ort.GraphOptimizationLevel, settings.optimization == "all"
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
    if provider is CPU:
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(SPINNING)))
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    if save_to is not None:
        options.optimized_model_filepath = str(save_to)
    saturates = settings.exact and provider is CPU and optimized and pairs_saturate()
    # A GPU's provider stores compiled code under the model's file name, so it needs that name.
    graph = str(model) if provider is not CPU else exact_graph(content) if saturates else content
    try:
        return open_session(ort, graph, options, provider, provider.settings(settings.precision, settings.cache))
    except refusals(ort) as error:
        raise SbsError(f"{model} cannot be loaded ({words(error)}); make it again with `sbs-deploy export`") from error


def refusals(ort: ModuleType) -> tuple[type[Exception], ...]:
    """Exceptions of onnxruntime, which have no common base but Exception."""
    state = ort.capi.onnxruntime_pybind11_state
    return (
        state.InvalidProtobuf,
        state.InvalidGraph,
        state.InvalidArgument,
        state.NotImplemented,
        state.Fail,
        state.RuntimeException,
        state.NoSuchFile,
        UnicodeDecodeError,  # raised if the message quotes bytes of a damaged file
    )


def words(error: Exception) -> str:
    """The reason of an error of onnxruntime without its source file, on one line."""
    text = " ".join(str(error).split())
    return text.rpartition("Status Message: ")[2][:QUOTED_CHARACTERS]


class OnnxRuntimeEngine:
    """A model on ONNX Runtime, timed on the host's clock; on a GPU, inputs and outputs stay in the GPU's memory.

    Raises:
        SbsError: the file is damaged, or the provider does not start here.
    """

    last_enqueue_ms = None
    last_cpu_ms: float | None = None

    def __init__(self, model: Path, settings: SessionSettings = USUAL) -> None:
        provider, threads, cache = settings.provider, settings.threads, settings.cache
        self.name = model.name
        self.precision = settings.precision
        self.device = clocks.cpu_model() if provider is CPU else f"{clocks.gpu_name() or 'GPU'} ({provider.ep})"
        self.settings: dict[str, Any] = {
            "provider": provider.ep,
            "threads": threads,
            "spinning": SPINNING and threads != 1,
            "io_binding": provider is not CPU,
            "transfers": "none" if provider is CPU else "excluded",
        }
        self._ort = require_module(ONNXRUNTIME)
        self._provider = provider
        self._again = model, settings
        if cache is not None:
            cache.mkdir(parents=True, exist_ok=True)
        try:
            self._session: Any = make_session(model, settings)
        except SbsError:
            if cache is not None and not any(cache.iterdir()):
                cache.rmdir()
            raise
        self.inputs, self.outputs = _specs(self._session.get_inputs()), _specs(self._session.get_outputs())
        self._names = [spec.name for spec in self.outputs]
        self._binding: Any = None
        self._bound: dict[str, Any] = {}

    def run(self, inputs: Named) -> Arrays:
        """The outputs by name."""
        taken = checked(inputs, self.inputs, self.name)
        try:
            if self._provider is CPU:
                outputs = self._session.run(self._names, taken)
            else:
                self._bind(taken)
                self._session.run_with_iobinding(self._binding)
                outputs = self._binding.copy_outputs_to_cpu()
        except refusals(self._ort) as error:
            shapes = ", ".join(f"{name} {array.shape}" for name, array in taken.items())
            raise SbsError(f"{self.name} does not run on {shapes} ({words(error)})") from error
        return dict(zip(self._names, outputs, strict=True))

    def latency_ms(self, inputs: Named) -> float:
        """Milliseconds of one call, on a GPU without transfers of inputs and outputs."""
        inputs = checked(inputs, self.inputs, self.name)
        if self._provider is CPU:
            cpu, began = time.process_time(), time.perf_counter()
            self._session.run(self._names, inputs)
            taken = time.perf_counter() - began
            self.last_cpu_ms = (time.process_time() - cpu) * 1e3 if self.settings["threads"] == 1 else None
            return taken * 1e3
        self._bind(inputs)
        began = time.perf_counter()
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()
        return (time.perf_counter() - began) * 1e3

    def node_times(self, inputs: Named, runs: int) -> list[NodeTime]:
        """Times of kernels in a second, profiling session, after one uncounted inference.

        Raises:
            SbsError: on a GPU, whose kernels ONNX Runtime starts without waiting for their end.
        """
        if self._provider is not CPU:
            raise SbsError(
                f"ONNX Runtime times nodes on the host, not those of {self._provider.ep}; build with --backend tensorrt"
            )
        inputs = checked(inputs, self.inputs, self.name)
        with tempfile.TemporaryDirectory() as folder:
            optimized = Path(folder) / "optimized.onnx"
            session = make_session(*self._again, save_to=optimized, profile=Path(folder) / "trace")
            for _ in range(1 + runs):
                session.run(self._names, inputs)
            return node_times_of(Path(session.end_profiling()), optimized, skip=1)

    def _bind(self, inputs: Named) -> None:
        """Copy the inputs to the device; inputs of unchanged shapes reuse the memory."""
        if self._bound and all(tuple(self._bound[name].shape()) == array.shape for name, array in inputs.items()):
            for name, array in inputs.items():
                self._bound[name].update_inplace(array)
            return
        memory, make = self._provider.memory, self._ort.OrtValue.ortvalue_from_numpy
        self._bound = {name: make(array, memory, 0) for name, array in inputs.items()}
        self._binding = self._session.io_binding()
        for name, value in self._bound.items():
            self._binding.bind_ortvalue_input(name, value)
        for name in self._names:
            self._binding.bind_output(name, memory, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._session = self._binding = None
        self._bound = {}


def _specs(tensors: Sequence[Any]) -> tuple[ArraySpec, ...]:
    """Descriptions of a session's tensors."""
    return tuple(
        ArraySpec(
            name=tensor.name,
            dtype=_TYPES.get(kind := tensor.type.removeprefix("tensor(").removesuffix(")"), kind),
            shape=tuple(
                size if isinstance(size, int) else size or open_axis(tensor.name, axis)
                for axis, size in enumerate(tensor.shape)
            ),
        )
        for tensor in tensors
    )
