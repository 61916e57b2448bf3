"""ONNX Runtime's CUDA provider: the float model, and the quantized one, against the CPU's answers."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from gpu_common import Images, agreement, run_part, timed

from sbs_deploy.backends.base import Engine
from sbs_deploy.backends.onnxruntime.engine import OnnxRuntimeEngine, SessionSettings
from sbs_deploy.backends.onnxruntime.providers import CUDA
from sbs_train.contract.errors import SbsError


def measure_cuda(float_model: Path, quantized_model: Path, images: Images, scratch: Path) -> dict[str, Any]:
    """Latency (host clock, transfers included) and agreement; the reason where CUDA is not in this onnxruntime."""
    engines: dict[str, Engine] = {}
    compared = {}
    with ExitStack() as stack:
        for name, model in (("fp32", float_model), ("int8 Q/DQ", quantized_model)):
            try:
                engine = stack.enter_context(OnnxRuntimeEngine(model, SessionSettings(precision=name, provider=CUDA)))
            except SbsError as error:
                return {"error": str(error)}
            with OnnxRuntimeEngine(model, SessionSettings(precision=name, optimization="none")) as reference:
                compared[name] = agreement(engine.run(images), reference.run(images))
            engines[name] = engine
        return {"latency": timed(engines, images, "fp32"), "against_cpu": compared}


if __name__ == "__main__":
    raise SystemExit(run_part(__doc__ or "", measure_cuda))
