"""The command `sbs-deploy profile-device`."""

from dataclasses import dataclass
from pathlib import Path

from sbs_deploy.backends.spec import BackendName
from sbs_deploy.commands.base import Output
from sbs_train.contract import console, rundir


@dataclass(frozen=True, kw_only=True)
class ProfileDevice(Output):
    """Measure milliseconds of layers on this device, in INT8 and in float, over channels, for `sbs-train --cost`."""

    backend: BackendName
    """Backend that executes the networks."""
    models: tuple[str, ...]
    """Names such as resnet20 or torchvision:resnet18 (these need torch), run directories, or float ONNX files."""
    out: Path = Path("device.json")
    """Output file; - is standard output. A .cache.jsonl beside the file lets an interrupted measurement go on."""
    input: str = "3,224,224"
    """Channels, height and width of one image, for models by name and files with open sizes."""
    classes: int | None = None
    """Classes of models by name; unless given, 10 for the built-in ones and 1000 for others."""
    width: int = 16
    """Width of the built-in models, in channels of their first layer."""
    threads: int = 1
    """Threads inside an operator, on a CPU."""
    batch: int = 1
    """Images of one inference."""
    points: int = 4
    """Numbers of channels to measure per layer, from a quarter to all; points * points variants in INT8, as many in
    float, and some 40 more."""
    time_limit_minutes: float | None = None
    """Stop after this time; complete networks are written, and the next run measures the rest."""

    def execute(self) -> int:
        """Measure, write device.json, and print the errors of its predictions."""
        from sbs_deploy.backends.spec import choose_backend
        from sbs_deploy.measure.devices.command import ProfileOptions, device_table, profile_device, summary
        from sbs_deploy.report.table import print_table
        from sbs_train.contract.schema import image_of

        options = ProfileOptions(
            backend=choose_backend(self.backend).backend,
            models=self.models,
            out=self.out,
            input=image_of(self.input),
            classes=self.classes,
            width=self.width,
            threads=self.threads,
            batch=self.batch,
            points=self.points,
            time_limit_minutes=self.time_limit_minutes,
        )
        device = profile_device(options)
        if not rundir.is_stdout(self.out):
            print_table(device_table(device))
            for line in summary(device, self.models):
                print(line)
            print(f"device: {self.out}")
        if self.json:
            console.print_json(
                {
                    "device": str(self.out),
                    "target": device.target,
                    "surfaces": len(device.surfaces),
                    "held_out": device.held_out.model_dump(),
                    "networks": [network.model_dump(exclude={"layers"}) for network in device.networks],
                }
            )
        return 0
