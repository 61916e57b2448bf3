"""ONNX Runtime: the optimized model as an engine, its integer convolutions counted, and sessions that run it.

The optimized graph holds kernels chosen for this processor, so the processor is part of what it is made from.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from typing_extensions import Self

from sbs_deploy.bench import clocks
from sbs_deploy.engine.base import BuiltEngine, FloatArray
from sbs_deploy.engine.qdq_graph import fusable_convolutions, integer_convolutions, quantized_convolutions
from sbs_deploy.names import INPUT, OUTPUT
from sbs_deploy.targets import ONNXRUNTIME, require_module
from sbs_train.contract import rundir
from sbs_train.contract.errors import SbsError

if TYPE_CHECKING:
    import onnxruntime

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
Optimization = Literal["all", "none"]
QUOTED_CHARACTERS = 400


def build_onnxruntime(source: Path, destination: Path, *, precision: str, plan_sha256: str) -> BuiltEngine:
    """Save the graph ONNX Runtime makes of `source`, for this processor.

    Raises:
        SbsError: the model is damaged, or a convolution that can run in integers was left in float.
    """
    import onnx

    ort = require_module(ONNXRUNTIME)
    made_from = {
        source.name: rundir.sha256_of(source),
        "plan.json": plan_sha256,
        "processor": rundir.hash_of([clocks.cpu_model(), list(clocks.vector_flags())]),
        "onnxruntime": ort.__version__,
    }
    if rundir.is_current(destination, made_from):
        return BuiltEngine(path=destination, skipped=True, details=rundir.read_manifest(destination).details)
    began = time.perf_counter()
    with rundir.atomic_path(destination) as temporary:
        make_session(source, threads=1, save_to=temporary)
        seconds = time.perf_counter() - began
        model = onnx.load(source)
        wanted = fusable_convolutions(model)
        fused = integer_convolutions(onnx.load(temporary), wanted)
        left = [conv.name for conv in wanted if conv.name not in fused]
        if left:
            raise SbsError(
                f"{source.name}: ONNX Runtime {ort.__version__} runs {len(left)} of {len(wanted)} quantized "
                f"convolutions in float, first {left[0]}; export again with `sbs-deploy export`, and report it if "
                f"that does not help"
            )
        difference = _difference(source, temporary, precision)
    details = {
        "precision": precision,
        "backend": ONNXRUNTIME.name,
        "integer_convolutions": len(fused),
        "fusable_convolutions": len(wanted),
        "quantized_convolutions": len(quantized_convolutions(model)),
        "providers": [CPU],
        "processor": clocks.cpu_model(),
        "exact_products": needs_exact_products(),
        "max_abs_diff_to_source": difference,
        "build_seconds": round(seconds, 3),
    }
    rundir.write_manifest(destination, made_from, versions={"onnxruntime": ort.__version__}, details=details)
    return BuiltEngine(path=destination, skipped=False, details=details)


def _difference(source: Path, engine: Path, precision: str) -> float:
    """Largest |logit| difference between the engine and its source run node by node, on noise: shows that it runs."""
    with (
        OnnxRuntimeEngine(source, precision=precision, optimization="none") as plain,
        OnnxRuntimeEngine(engine, precision=precision) as optimized,
    ):
        images = np.random.default_rng(0).standard_normal((2, *plain.image), np.float32)
        return float(np.abs(optimized.run(images) - plain.run(images)).max())


def make_session(
    model: Path,
    *,
    threads: int,
    providers: Sequence[str] = (CPU,),
    optimization: Optimization = "all",
    save_to: Path | None = None,
) -> "onnxruntime.InferenceSession":
    """A session with `threads` threads inside an operator.

    Raises:
        SbsError: the model is damaged, or a provider that was asked for is not the one in use.
    """
    ort = require_module(ONNXRUNTIME)
    if not model.is_file():
        raise SbsError(f"{model} is missing; make it with `sbs-deploy export`")
    missing = [provider for provider in providers if provider not in ort.get_available_providers()]
    if missing:
        raise SbsError(f"onnxruntime {ort.__version__} has no {missing[0]}; `pip install onnxruntime-gpu` brings CUDA")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what it logs as an error it also raises
    level = ort.GraphOptimizationLevel
    if optimization == "all" and needs_exact_products():
        options.add_session_config_entry("session.x64quantprecision", "1")
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimization == "all" else level.ORT_DISABLE_ALL
    if save_to is not None:
        options.optimized_model_filepath = str(save_to)
    try:
        session = ort.InferenceSession(str(model), options, providers=list(providers))
    except _refusals(ort) as error:
        raise SbsError(f"{model} cannot be loaded ({_words(error)}); make it again with `sbs-deploy export`") from error
    used = session.get_providers()
    if used[: len(providers)] != list(providers):
        raise SbsError(f"{model.name}: asked for {list(providers)}, but onnxruntime fell back to {used}")
    return session


def needs_exact_products() -> bool:
    """Whether this x86 processor has no VNNI: its uint8 x int8 products then saturate at 16 bits, two at a time.

    That is off by tens of steps for large weights. ONNX Runtime has an exact form, a little slower, behind an option.
    """
    flags = clocks.vector_flags()
    return "avx2" in flags and not {"avx512_vnni", "avx_vnni"} & set(flags)


def _refusals(ort: ModuleType) -> tuple[type[Exception], ...]:
    """What onnxruntime raises; it has no common base but Exception."""
    state = ort.capi.onnxruntime_pybind11_state
    return (
        state.InvalidProtobuf,
        state.InvalidGraph,
        state.InvalidArgument,
        state.NotImplemented,
        state.Fail,
        state.RuntimeException,
        state.NoSuchFile,
    )


def _words(error: Exception) -> str:
    """The reason without its source file, on one line."""
    text = " ".join(str(error).split())
    return text.rpartition("Status Message: ")[2][:QUOTED_CHARACTERS]


class OnnxRuntimeEngine:
    """A model on ONNX Runtime, timed on the host's clock."""

    def __init__(
        self,
        model: Path,
        *,
        precision: str,
        threads: int = 1,
        provider: str = CPU,
        optimization: Optimization = "all",
    ) -> None:
        self.name = model.name
        self.precision = precision
        self.device = clocks.cpu_model() if provider == CPU else clocks.gpu_name() or provider
        providers = (provider,) if provider == CPU else (provider, CPU)
        self._session: Any = make_session(model, threads=threads, providers=providers, optimization=optimization)

    @property
    def image(self) -> tuple[int, ...]:
        """Shape of one input image: C, H, W."""
        return tuple(self._session.get_inputs()[0].shape[1:])

    def run(self, inputs: FloatArray) -> FloatArray:
        """Logits (N, classes) of images (N, C, H, W)."""
        try:
            (logits,) = self._session.run([OUTPUT], {INPUT: inputs})
        except _refusals(require_module(ONNXRUNTIME)) as error:
            raise SbsError(f"{self.name} does not run on {inputs.shape} ({_words(error)})") from error
        result: FloatArray = np.asarray(logits, np.float32)
        return result

    def latency_ms(self, inputs: FloatArray) -> float:
        """Milliseconds of one call, transfers included where there are any."""
        began = time.perf_counter()
        self._session.run([OUTPUT], {INPUT: inputs})
        return (time.perf_counter() - began) * 1e3

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session = None
