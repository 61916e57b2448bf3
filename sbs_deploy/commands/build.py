"""Commands that make files: build, export."""

from dataclasses import dataclass
from typing import Literal

from sbs_deploy.commands.base import Flag, OnRun
from sbs_train.contract import console

Backend = Literal["auto", "tensorrt", "tensorrt-rtx", "openvino", "onnxruntime"]
Precision = Literal["int8", "fp8", "fp16", "fp32"]
HardwareCompatibility = Literal["none", "ampere-plus", "same-compute-capability"]
Provider = Literal["cpu", "cuda", "tensorrt", "nv-tensorrt-rtx"]


@dataclass(frozen=True, kw_only=True)
class Build(OnRun):
    """Build an engine: export, validate, engine. Stages that are current are skipped."""

    model: str | None = None
    """path/to/file.py:factory that the run was trained with: names it, so that it may run (see --trust)."""
    engine: Precision = "int8"
    """int8 is the plan; fp8 its grids as E4M3 (compute capability 8.9 and newer); fp16 and fp32 are controls, the slim
    network in float."""
    backend: Backend = "auto"
    """auto: TensorRT where it is importable and a GPU is there, else TensorRT-RTX ahead of time, else ONNX Runtime."""
    provider: Provider | None = None
    """With --backend onnxruntime: its execution provider; cpu unless given."""
    device: str | None = None
    """With --backend openvino: CPU, GPU (Intel's; GPU.1 is the second one) or NPU; the CPU unless given."""
    legalise: Literal["exact", "promote"] = "exact"
    """exact: activations below 8 bits keep their grid, by a Clip. promote: they get all codes of 8 bits with the plan's
    clip value; the top-1 of both on the golden images is printed."""
    depthwise: Literal["int8", "fp16"] | None = None
    """What TensorRT computes depthwise convolutions in; what is faster on the backend unless given."""
    batch_opt: int | None = None
    """Batch size a TensorRT engine is tuned for; 1 unless given."""
    batch_max: int | None = None
    """Largest batch size a TensorRT engine accepts; 32 unless given."""
    optimization_level: int | None = None
    """Of TensorRT's builder, 0 (fast build) to 5 (fast engine)."""
    workspace_mib: int | None = None
    """Most scratch memory that a kernel of TensorRT may use."""
    hardware_compatibility: HardwareCompatibility = "none"
    """Let a TensorRT engine run on other GPUs too: of Ampere and newer, or of the same compute capability."""
    version_compatible: Flag = False
    """Let newer versions of TensorRT, of the same major one, load the engine."""
    refit: Flag = False
    """Let the weights of a TensorRT engine be replaced without a build."""

    def execute(self) -> int:
        """Build and say what was done."""
        from sbs_deploy import build
        from sbs_deploy.backends.request import BuilderSettings, batch_profile, check_settings
        from sbs_deploy.backends.spec import choose_backend

        choice = choose_backend(self.backend, provider=self.provider, device=self.device)
        builder = BuilderSettings(
            optimization_level=self.optimization_level,
            workspace_mib=self.workspace_mib,
            hardware_compatibility=self.hardware_compatibility,
            version_compatible=self.version_compatible,
            refit=self.refit,
        )
        check_settings(builder, choice.backend)
        options = build.BuildOptions(
            precision=self.engine,
            choice=choice,
            batches=batch_profile(choice.backend, self.batch_opt, self.batch_max),
            activations=self.legalise,
            depthwise=self.depthwise,
            builder=builder,
        )
        with self.writing(self.model) as run:
            built = build.build_run(run, options, console.print_progress)
        print(built.path)
        if self.json:
            console.print_json(
                {
                    "engine": str(built.path),
                    "backend": options.choice.backend.name,
                    "why": options.choice.why,
                    "skipped": built.skipped,
                    **built.details,
                }
            )
        return 0


@dataclass(frozen=True, kw_only=True)
class Export(OnRun):
    """Write the ONNX files: dense float, slim float, one quantized model for each dialect, golden inputs."""

    model: str | None = None
    """path/to/file.py:factory that the run was trained with: names it, so that it may run (see --trust)."""

    def execute(self) -> int:
        """Export and list the files."""
        from sbs_deploy.build import export_stage

        with self.writing(self.model) as run:
            export_stage(run, console.print_progress)
        files = (run.model_fp32, run.model_slim, run.model_trt, run.model_ort, run.golden)
        for path in files:
            print(path)
        if self.json:
            console.print_json({path.name: str(path) for path in files})
        return 0
