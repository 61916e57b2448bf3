"""TensorRT-RTX engines built ahead of time, run and timed on this GPU; where the chip is refused, in its words."""

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
from gpu_common import Images, agreement, run_part, timed

from sbs_deploy.backends.base import Engine
from sbs_deploy.backends.onnxruntime.engine import OnnxRuntimeEngine, SessionSettings
from sbs_deploy.backends.request import BatchProfile, Request
from sbs_deploy.backends.runtime import build_engine
from sbs_deploy.backends.spec import TENSORRT_RTX
from sbs_deploy.backends.tensorrt.engine import TensorRTEngine
from sbs_deploy.legalise.half import half_precision
from sbs_train.contract.errors import SbsError

PROFILED_RUNS = 50


def measure_rtx(float_model: Path, quantized_model: Path, images: Images, scratch: Path) -> dict[str, Any]:
    """Build details, latency (device events, no transfers), layers and agreement of INT8, FP16 and FP32 engines."""
    engines: dict[str, TensorRTEngine] = {}
    builds, errors, compared = {}, {}, {}
    batch = len(images)
    with ExitStack() as stack:
        for precision, source in (("fp32", float_model), ("fp16", float_model), ("int8", quantized_model)):
            try:
                legal = scratch / f"model.{precision}.onnx"
                graph = onnx.load(source)
                onnx.save(graph if precision == "fp32" else half_precision(graph), legal)
                profile = BatchProfile(opt=batch, max=batch)
                request = Request(backend=TENSORRT_RTX, precision=precision, profile=profile)
                built = build_engine(legal, scratch / f"model.{precision}.tensorrt-rtx.engine", request, made_from={})
                builds[precision] = built.details
                engine = stack.enter_context(TensorRTEngine(built.path, backend=TENSORRT_RTX, precision=precision))
                logits = engine.run(images)
            except SbsError as error:
                errors[precision] = str(error)
                continue
            with OnnxRuntimeEngine(source, SessionSettings(precision=precision, optimization="none")) as reference:
                compared[precision] = agreement(logits, reference.run(images))
            engines[precision] = engine
        contestants: dict[str, Engine] = dict(engines)
        latency = timed(contestants, images, "fp32") if engines else {}
        for name, engine in engines.items():
            latency[name] |= {"enqueue_ms": engine.last_enqueue_ms, "settings": engine.settings}
        layers = {
            name: [asdict(one) for one in engine.node_times(images, PROFILED_RUNS)] for name, engine in engines.items()
        }
    return {"builds": builds, "latency": latency, "layers": layers, "against_cpu": compared, "errors": errors}


if __name__ == "__main__":
    raise SystemExit(run_part(__doc__ or "", measure_rtx))
