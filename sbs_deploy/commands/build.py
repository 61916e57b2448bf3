"""Commands that make files: build, export."""

from dataclasses import dataclass
from typing import Literal

from sbs_deploy.backends.request import BackendFlags, sizes_of_axes
from sbs_deploy.backends.spec import Precision
from sbs_deploy.commands.base import OnRun
from sbs_train.contract import console
from sbs_train.contract.placement import MINUTES, EngineDetails


@dataclass(frozen=True, kw_only=True)
class Build(OnRun, BackendFlags):
    """Build an engine: export, validate, engine. Stages that are current are skipped."""

    model: str | None = None
    """path/to/file.py:factory that the run was trained with: names it, so that it may run (see --trust)."""
    engine: Precision = "int8"
    """int8 is the plan; fp8 its grids as E4M3 (compute capability 8.9 and newer); fp16 and fp32 are controls, the slim
    network in float."""
    legalise: Literal["exact", "promote-8", "promote"] | None = None
    """exact: activations keep the plan's grid, by a Clip. promote-8: activations of 8 bits get all codes of INT8, with
    the plan's clip value, in place of the plan's 127. promote: those of 2 and 4 bits as well. The top-1 of the exact
    and of the built graph is printed. Unless given, measured placement takes the fastest; without it exact, or
    promote-8 with quantized outputs on processors where products of all codes are exact."""
    outputs: Literal["none", "layers", "all"] | None = None
    """What is quantized beside the inputs of layers. layers: the output of each layer, without which ONNX Runtime
    computes the layer in float. all: also what lies between quantized tensors, such as Sigmoid, products and Concat.
    Unless given, measured placement takes the fastest; without it all for ONNX Runtime on a CPU, where the plan has
    ranges of outputs, and none elsewhere."""
    depthwise: Literal["int8", "fp16"] | None = None
    """Type of depthwise convolutions; by default the type that is faster on the backend."""

    placement: Literal["measured", "plan"] | None = None
    """measured: whole graphs are timed, and planned layers that are slower in integers stay in float. plan: every layer
    as planned. Unless given, measured where the backend can run here."""
    placement_minutes: float = MINUTES
    """About how long placement may measure, the last comparison with the float controls included."""
    threads: int = 1
    """Threads inside an operator, on a CPU, that placement is measured with."""

    def execute(self) -> int:
        """Build the engine and print a summary."""
        from sbs_deploy import api
        from sbs_deploy.placement.words import ship_advice

        choice = self.choice()
        built = api.build(
            self.run,
            self.engine,
            self.backend,
            provider=self.provider,
            device=self.device,
            batch_opt=self.batch_opt,
            batch_max=self.batch_max,
            shapes=sizes_of_axes(self.shapes),
            legalise=self.legalise,
            outputs=self.outputs,
            depthwise=self.depthwise,
            builder=self.builder,
            placement=self.placement,
            placement_minutes=self.placement_minutes,
            threads=self.threads,
            model=self.model,
            trust=self.trust,
            progress=console.print_progress,
        )
        placement = EngineDetails.model_validate(built.details).placement
        print(built.path)
        if placement is not None and (advice := ship_advice(placement)) is not None:
            print(advice)
        if self.json:
            console.print_json(
                {
                    "engine": str(built.path),
                    "backend": choice.backend.name,
                    "why": choice.why,
                    "skipped": built.skipped,
                    "ship": None if placement is None else placement.ship,
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
        """Export, and list the files."""
        from sbs_deploy.build import export_stage
        from sbs_deploy.opening import writing

        with writing(self.run, "export", console.print_progress, trust=self.trust, model=self.model) as run:
            export_stage(run, console.print_progress)
        files = (run.model_fp32, run.model_slim, run.model_trt, run.model_ort, run.golden)
        for path in files:
            print(path)
        if self.json:
            console.print_json({path.name: str(path) for path in files})
        return 0
