"""A small run that one process does, or several under torchrun; started as a script it does one job in every process.

torchrun --standalone --nproc-per-node 2 tests/sbs_train/stages/ranked.py JOB DIRECTORY
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from sbs_train.contract.config import CalibrateConfig, FinetuneConfig, PretrainConfig, SearchConfig, TrainConfig
from sbs_train.contract.errors import SbsError
from sbs_train.inputs import models
from sbs_train.stages.context import open_fabric
from sbs_train.stages.descent import Descent
from sbs_train.stages.train import train as train_run

ROOT = Path(__file__).parents[3]
CONFIG = TrainConfig(
    model="plain",
    seed=1,
    width=8,
    target="50x",
    batch_size=32,
    device="cpu",
    calibrate=CalibrateConfig(batches=2),
    pretrain=PretrainConfig(epochs=2, steps_per_epoch=10, lr=0.3),
    search=SearchConfig(epochs=4, steps_per_epoch=6, lr=0.05, group_size=2),
    finetune=FinetuneConfig(epochs=2, steps_per_epoch=6, lr=0.05),
)


class Plain(nn.Module):
    """No BatchNorm: what an image gives does not depend on its batch. One layer is never used."""

    def __init__(self, width, channels, classes):
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, 2, 1)
        self.widen = nn.Conv2d(width, 2 * width, 3, 1, 1)
        self.narrow = nn.Conv2d(2 * width, width, 3, 1, 1)
        self.down = nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.fc = nn.Linear(2 * width, classes)
        self.unused = nn.LayerNorm(4)
        for layer in (self.stem, self.widen, self.narrow, self.down):
            nn.init.kaiming_normal_(layer.weight)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(x + self.narrow(F.relu(self.widen(x))))
        return self.fc(F.relu(self.down(x)).mean((2, 3)))


def train(out, **changes):
    """One run of the plain network, in this process."""
    models.BUILDERS["plain"] = Plain
    return train_run(dataclasses.replace(CONFIG, **changes), out)


def torchrun(*arguments, timeout=300):
    """Run this file in two processes under torchrun, on the CPU."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(
        [*command, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=timeout
    )


def refuse():
    raise SbsError("no such thing")


def try_ranks(rank):
    """What every call of `Ranks` gives on this rank."""
    _, ranks = open_fabric(CONFIG)
    mean, whole = torch.full((3,), float(rank)), torch.tensor([[2.0 * rank]])
    ranks.average_([mean, whole])
    torch.manual_seed(rank)
    model = nn.BatchNorm1d(2)
    nn.init.normal_(model.running_mean)
    ranks.share(model)
    found = {
        "sum": ranks.sum(torch.tensor([1.0, rank], dtype=torch.float64)).tolist(),
        "average": [mean.tolist(), whole.tolist()],
        "shared": model.running_mean.tolist(),
        "on_first": ranks.on_first(lambda: ["made on", rank]),
        "each": ranks.each(lambda: rank),
    }
    for name, call in (
        ("refused on 0", lambda: ranks.on_first(refuse)),
        ("refused on 1", lambda: ranks.each(refuse if rank else lambda: 0)),
        ("refused on all", lambda: ranks.each(refuse)),
    ):
        try:
            call()
        except (SbsError, SystemExit) as error:
            found[name] = [type(error).__name__, str(error)]
    return found


def die(kind):
    """Let this rank fail in the third step of the second epoch of the search."""
    step, left = Descent.step, [29]

    def failing(self, *args, **kwargs):
        left[0] -= 1
        if left[0] == 0 and kind == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if left[0] == 0:
            raise SbsError("this rank has had enough")
        return step(self, *args, **kwargs)

    Descent.step = failing


def main(job, directory, *settings):
    rank = int(os.environ["RANK"])
    if job == "try":
        (directory / f"ranks-{rank}.json").write_text(json.dumps(try_ranks(rank)))
    elif job in ("killed", "refused") and rank:
        die(job)
    changes = json.loads(settings[0]) if settings else {}
    if "search" in changes:
        changes["search"] = SearchConfig(**changes["search"])
    outcome = train(directory / "two", **changes)
    (directory / f"plan-{rank}.json").write_text(outcome.plan.model_dump_json())


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
