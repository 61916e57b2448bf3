"""The cells of `equal_latency.py`: network, engine, budget, method and seed."""

import argparse
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equal_methods import METHODS

LENGTHS = {
    "resnet20": {"pretrain_steps": 8000, "search_steps": 800, "steps": 2000, "batch_size": 64},
    # A step is three times as dear in torch as ResNet-20's, so there are fewer, of half the images.
    "mobilenetv2": {"pretrain_steps": 4000, "search_steps": 400, "steps": 1000, "batch_size": 32},
}
"""Steps of pretraining, then of every method, of which our search takes some."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One cell."""

    model: str
    width: int
    backend: str
    batch: int
    budget: float
    method: str
    seed: int
    pretrain_steps: int
    search_steps: int
    steps: int
    batch_size: int
    round_to: int
    precision: str
    out: Path
    weights: Path
    flags: tuple[str, ...]

    @property
    def network(self) -> str:
        return f"{self.model}_w{self.width}"

    @property
    def setting(self) -> Path:
        """Folder of what the cells of one network on one engine share."""
        return self.out / self.network / f"{self.backend}-b{self.batch}"

    @property
    def run(self) -> Path:
        return self.setting / f"{self.budget:g}" / f"{self.method}-s{self.seed}"

    @property
    def result(self) -> Path:
        return self.run.with_name(f"{self.run.name}.json")


def jobs_of(args: argparse.Namespace) -> list[Job]:
    """All cells that were asked for; ours comes before the methods that are compared with it."""
    jobs = []
    for net in args.nets:
        model, _, width = net.partition(":")
        given = {"pretrain_steps": args.pretrain_steps, "search_steps": args.search_steps, "steps": args.steps}
        lengths = LENGTHS[model] | {name: steps for name, steps in given.items() if steps is not None}
        for setting in args.settings:
            backend, _, batch = setting.partition(":")
            jobs += [
                Job(
                    model=model,
                    width=int(width),
                    backend=backend,
                    batch=int(batch),
                    budget=budget,
                    method=method,
                    seed=seed,
                    **lengths,
                    round_to=args.round_to,
                    precision=args.precision,
                    out=args.out,
                    weights=args.weights or args.out / "weights",
                    flags=tuple(shlex.split(args.ours)),
                )
                for seed in args.seeds
                for budget in args.budgets
                for method in METHODS
                if method in args.methods
            ]
    return jobs


def epochs(steps: int, size: int) -> dict[str, Any]:
    """Settings of a stage of `steps` steps, validated about every `size` of them."""
    count = max(1, round(steps / size))
    return {"epochs": count, "steps_per_epoch": max(1, steps // count)}
