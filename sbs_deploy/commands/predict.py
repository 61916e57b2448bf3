"""The command `sbs-deploy predict`."""

from dataclasses import dataclass
from pathlib import Path

from sbs_deploy.commands.base import OnRun
from sbs_deploy.opening import open_run
from sbs_train.contract import console


@dataclass(frozen=True, kw_only=True)
class Predict(OnRun):
    """Milliseconds that a run's plan will take on a device that `profile-device` measured; nothing is executed."""

    cost: Path
    """device.json of `sbs-deploy profile-device`, with the network of the run."""

    def execute(self) -> int:
        """Add up the measured times of the plan's layers, and print them."""
        from sbs_deploy.report.table import make_table, print_table
        from sbs_train.contract.device import load_device
        from sbs_train.contract.latency import network_in, predicted_steps
        from sbs_train.contract.plan import load_plan

        run = open_run(self.run, console.print_progress)
        plan, device = load_plan(run.require(run.plan, "sbs-train")), load_device(self.cost)
        network = network_in(device, plan)
        steps = predicted_steps(device, network, plan)
        layers = [
            {"name": row.name, "ms": steps[row.name], "kept_in": row.kept_in, "kept_out": row.kept_out}
            for row in plan.layers
        ]
        ms, between = sum(steps.values()), steps["the rest"]
        lines = [(str(row["name"]), f"{row['kept_in']} → {row['kept_out']}", f"{row['ms']:.4f}") for row in layers]
        print_table(make_table(("layer", "channels", "ms"), [*lines, ("everything else", "", f"{between:.4f}")]))
        batch = f" per batch of {device.batch}" if device.batch > 1 else ""
        print(f"{ms:.4g} ms{batch} on {device.device} ({device.target}), {network.fp32_ms / ms:.2f}x of dense FP32")
        if self.json:
            found = {"ms": ms, "ms_fp32": network.fp32_ms, "batch": device.batch, "device": device.device}
            console.print_json({**found, "layers": layers, "between_ms": between})
        return 0
