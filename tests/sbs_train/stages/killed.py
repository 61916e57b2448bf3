"""Training sessions that end by SIGKILL at a chosen point, in processes that share one import of torch."""

import dataclasses
import multiprocessing
import os
import signal
from pathlib import Path

from sbs_train import cli
from sbs_train.stages import loop, search, supervised
from sbs_train.stages.descent import Descent

SHORT = (
    "--width 4 --batch-size 32 --device cpu --calibrate.batches 1 --search.group-size 2 "
    "--pretrain.epochs 2 --pretrain.steps-per-epoch 4 --search.epochs 3 --search.steps-per-epoch 5 "
    "--finetune.epochs 2 --finetune.steps-per-epoch 4"
).split()


@dataclasses.dataclass(frozen=True)
class Point:
    """The `count`-th time that `event` happens to `name`, counted from the start of a session.

    step      a step of stage `name` was taken, and is in no checkpoint yet
    half      half of the file `name` is written, under its temporary name
    written   all of it is
    replaced  it has taken the place of the last one
    any       any of these, whatever the name
    """

    event: str
    name: str = ""
    count: int = 1


def start_session(run: Path, *flags: str, kill: Point | None = None, resume: bool = False) -> multiprocessing.Process:
    """Train in a new process, which kills itself at a point."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "sbs_train.stages.run", "sklearn.datasets", "torch_pruning"])
    arguments = [*(["--resume"] if resume else SHORT), "--out", str(run), *flags]
    process = context.Process(target=_session, args=(arguments, kill))
    process.start()
    return process


def session(run: Path, *flags: str, kill: Point | None = None, resume: bool = False) -> int:
    """The same, to its end: an exit code, or minus the signal."""
    process = start_session(run, *flags, kill=kill, resume=resume)
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _session(arguments: list[str], kill: Point | None) -> None:
    if kill is not None:
        _watch(kill)
    raise SystemExit(cli.main(arguments))


def _watch(kill: Point) -> None:
    left, stage = [kill.count], [""]
    step, write_bytes, replace, fit = Descent.step, Path.write_bytes, Path.replace, loop.fit

    def at(event, name):
        if kill.event == "any" or (event, name) == (kill.event, kill.name):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

    def final_name(temporary):
        return temporary.name

    def watched_step(self, *args, **kwargs):
        loss = step(self, *args, **kwargs)
        at("step", stage[0])
        return loss

    def watched_write(self, content):
        with self.open("wb") as file:
            file.write(content[: len(content) // 2])
            file.flush()
            at("half", final_name(self))
        return write_bytes(self, content)

    def watched_replace(self, target):
        at("written", final_name(self))
        replace(self, target)
        at("replaced", Path(target).name)

    def watched_fit(ctx, which, *args):
        stage[0] = which.name
        return fit(ctx, which, *args)

    Descent.step, Path.write_bytes, Path.replace = watched_step, watched_write, watched_replace
    search.fit = supervised.fit = watched_fit
