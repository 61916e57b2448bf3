"""The command `sbs-train sweep`: its flags and its output."""

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tyro

from sbs_train.contract import console
from sbs_train.contract.config import TrainConfig, plain_name, values_of
from sbs_train.contract.errors import SbsError
from sbs_train.contract.launch import this_launch
from sbs_train.contract.trust import absolute_name
from sbs_train.sweep.directory import Settings, load_settings
from sbs_train.sweep.scheduler import LocalScheduler, Scheduler, cores

PROG = "sbs-train"
Flag = tyro.conf.FlagCreatePairsOff[bool]


@dataclass(frozen=True, kw_only=True)
class Sweep(TrainConfig):
    """Compress a network to several targets, all from the same float weights, and find the knee of the front.

    The first argument may be a recipe (see `sbs-train recipes`). Pretrains once, in OUT/pretrained; every target gets
    a run directory, such as OUT/66x; OUT/sweep.json and sweep.html compare them.
    """

    targets: tuple[str, ...] = ()
    """What `sbs-train` takes as --target, several times: 20x 40x 66x; with --cost, latencies: 1.2ms 1ms 2x."""
    target: tyro.conf.Suppress[str] = "1x"
    out: Path | None = None
    """Directory of the sweep; runs/sweep-RECIPE-TIME unless given."""
    jobs: int | None = None
    """Runs at the same time; by default 1 on a CPU, 1 per GPU, and with Ray as many as fit into the cluster."""
    threads: int | None = None
    """Threads of each run; OMP_NUM_THREADS, or else this machine's cores divided by --jobs, unless given."""
    scheduler: Literal["local", "ray"] = "local"
    """local: processes of this machine. ray: tasks of a Ray cluster that shares a file system with it."""
    preset: Literal["paper"] | None = None
    """paper: search as the paper does (its grids, learned thresholds, fixed lambda) instead of our defaults."""
    trust: Flag = False
    """With --resume: let the Python files run that the sweep names as model and task; naming them does so, too."""
    resume: Flag = False
    """Go on with the sweep in --out: finished runs are skipped, interrupted ones go on from their last checkpoint."""
    json: Flag = False
    """Print one JSON document, the content of sweep.json, as the last line of stdout."""
    verbose: Flag = False
    """Show the traceback of an error."""

    @staticmethod
    def stored(out: Path | None) -> dict[str, Any]:
        """The settings of the sweep in `out`, for `--resume`."""
        if out is None:
            raise SbsError("--resume needs the directory of the sweep; give it with --out")
        settings = load_settings(out)
        return {**values_of(settings.config), "targets": settings.targets}

    def execute(self) -> int:
        """Make the runs, print the front; exit 1 if a target failed or was not reached."""
        from sbs_train.sweep.page import sweep_table
        from sbs_train.sweep.run import check, sweep
        from sbs_train.tables import print_table

        config = TrainConfig(**values_of(self))
        config = replace(config, model=absolute_name(config.model), task=absolute_name(config.task), out=None)
        settings = Settings(targets=self.targets, config=config)
        out = self.out or Path(f"runs/sweep-{plain_name(config)}-{time.strftime('%Y%m%d-%H%M%S')}")
        check(settings, out, resume=self.resume)
        scheduler, threads = self._scheduler()
        try:
            result = sweep(settings, out, scheduler, resume=self.resume, threads=threads)
        except KeyboardInterrupt:
            console.print_progress(f"go on with `sbs-train sweep --resume --out {out}`")
            raise
        print_table(sweep_table(result))
        print(f"sweep: {out}")
        missed = [row for row in result.runs if not row.reached]
        if missed:
            why = "; ".join(f"{row.target}: {row.error or f'goes to {row.reduction:.4g}x'}" for row in missed)
            console.print_error(PROG, f"{len(missed)} of {len(result.runs)} targets were not reached ({why})")
        if self.json:
            console.print_json(result.model_dump())
        return 1 if missed else 0

    def _scheduler(self) -> tuple[Scheduler, int | None]:
        """The scheduler of the runs, and the threads of each run; None leaves threads to the environment."""
        for flag, value in (("--jobs", self.jobs), ("--threads", self.threads)):
            if value is not None and value < 1:
                raise SbsError(f"{flag} {value} must be above 0")
        if this_launch().world > 1:
            raise SbsError("sbs-train sweep starts its own processes; run it without torchrun")
        if self.scheduler == "ray":
            from sbs_train.sweep.ray_scheduler import RayScheduler

            gpu = None if self.device == "auto" else self.device == "cuda"
            return RayScheduler(self.jobs, gpu=gpu), self._threads(1)
        gpus = [] if self.device == "cpu" else visible_gpus()
        jobs = self.jobs or max(1, len(gpus))
        return LocalScheduler(jobs, gpus), self._threads(jobs)

    def _threads(self, jobs: int) -> int | None:
        if self.threads is None and "OMP_NUM_THREADS" in os.environ:
            return None
        return self.threads or max(1, cores() // jobs)


def visible_gpus() -> list[str]:
    """Names of the usable GPUs, as in CUDA_VISIBLE_DEVICES."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]
