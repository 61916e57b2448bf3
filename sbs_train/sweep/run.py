"""A sweep: pretrain once, then one run for every target, then the front."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from sbs_train.contract import rundir
from sbs_train.contract.config import TrainConfig, data_words, to_dict
from sbs_train.contract.device import load_device
from sbs_train.contract.errors import GateFailed, SbsError
from sbs_train.contract.front import knee_of, pareto_front
from sbs_train.contract.lock import LOCK
from sbs_train.contract.rundir import RunDir
from sbs_train.contract.sweep import SweepResult, SweepRun, save_sweep
from sbs_train.sweep.directory import (
    PRETRAINED,
    Settings,
    SweepDir,
    float_score,
    is_done,
    made_from,
    mark_done,
    row_of,
    save_settings,
    shortest_forms,
)
from sbs_train.sweep.page import write_page
from sbs_train.sweep.progress import SweepProgress
from sbs_train.sweep.scheduler import Scheduler
from sbs_train.sweep.task import Failure, SweepTask


def check(settings: Settings, root: Path, *, resume: bool) -> list[str]:
    """Check a sweep without writing anything; returns the targets' names, which name their run directories.

    Raises:
        SbsError: targets, settings or device.json are missing or wrong, or the directory has another content.
    """
    names = shortest_forms(settings.targets, settings.config)
    made_from(settings.config)  # reads the named files
    if settings.config.cost is not None:
        load_device(settings.config.cost)
    if not resume:
        for path in (SweepDir(root).settings, *(root / name / "config.json" for name in names)):
            if path.exists():
                raise SbsError(f"{root} already holds a sweep; go on with it by --resume, or choose another --out")
    return names


def sweep(
    settings: Settings, root: Path, scheduler: Scheduler, *, resume: bool = False, threads: int | None = None
) -> SweepResult:
    """Make the runs that are missing in `root`, and leave sweep.json and sweep.html there.

    The link `latest`, in `root` and beside it, then leads to the run of the knee, or else of the best network.

    Raises:
        SbsError: for the reasons that `check` names; or pretraining refused its input, and nothing was written.
        GateFailed: pretraining failed otherwise.
    """
    root = root.resolve()
    check(settings, root, resume=resume)
    rundir.make_directory(root)
    with rundir.locked(root, "sbs-train"):
        return _sweep(settings, root, scheduler, resume=resume, threads=threads)


def _sweep(settings: Settings, root: Path, scheduler: Scheduler, *, resume: bool, threads: int | None) -> SweepResult:
    names, paths = check(settings, root, resume=resume), SweepDir(root)
    config = settings.config
    _pretrain(settings, paths, scheduler, threads)
    configs = {
        name: replace(config, target=name, weights=paths.float_weights, pretrained=False, out=root / name)
        for name in names
    }
    failures = _run(configs, root, scheduler, threads)
    rows = [
        SweepRun(target=name, run=name, error=failures[name].words) if name in failures else row_of(root, name)
        for name in names
    ]
    score_name, score_fp32 = float_score(paths.pretrained)
    result = SweepResult(
        model=config.model,
        data=data_words(config.data, config.task),
        unit="ms" if config.cost else "BOPs",
        score_name=score_name,
        score_fp32=score_fp32,
        runs=judged(rows),
    )
    save_sweep(result, paths.result)
    write_page(result, paths.page)
    best = best_of(result.runs)
    if best is not None:
        rundir.link_latest(RunDir(root / best.run))
        rundir.link_latest(RunDir(root / best.run), levels=2)
    return result


def judged(rows: Sequence[SweepRun]) -> list[SweepRun]:
    """The rows with `on_front` and `knee` set."""
    whole = [row for row in rows if row.error is None]
    costs, scores = [row.cost or 0.0 for row in whole], [row.score or 0.0 for row in whole]
    knee, front = knee_of(costs, scores), pareto_front(costs, scores)
    on_front = {whole[index].run for index in front}
    at_knee = None if knee is None else whole[knee].run
    return [row.model_copy(update={"on_front": row.run in on_front, "knee": row.run == at_knee}) for row in rows]


def best_of(rows: Sequence[SweepRun]) -> SweepRun | None:
    """The knee; without a knee the run with the best score of those that reached their target, else of all."""
    whole = [row for row in rows if row.error is None]
    return max(whole, key=lambda row: (row.knee, row.reached, row.score, -(row.cost or 0.0)), default=None)


def _pretrain(settings: Settings, paths: SweepDir, scheduler: Scheduler, threads: int | None) -> None:
    """Make the float weights; if the input is refused, written files are removed."""
    # Pretraining uses no target; 1x is valid for every network.
    config = replace(settings.config, target="1x", max_bops=None, out=paths.pretrained.root)
    earlier = rundir.read_bytes(paths.settings).decode() if rundir.is_file(paths.settings) else None
    save_settings(settings, paths.root)
    failure = _run({PRETRAINED: config}, paths.root, scheduler, threads).get(PRETRAINED)
    if failure is None:
        return
    if failure.code == SbsError.exit_code and earlier is not None:
        rundir.write_text(paths.settings, earlier)
    elif not paths.pretrained.config.is_file():
        _withdraw(paths)
    raise (SbsError if failure.code == SbsError.exit_code else GateFailed)(failure.words)


def _run(
    configs: Mapping[str, TrainConfig], root: Path, scheduler: Scheduler, threads: int | None
) -> dict[str, Failure]:
    """Make the missing runs; returns the failures by name of the run."""
    missing = {name: config for name, config in configs.items() if not is_done(RunDir(root / name), config)}
    tasks = [_task(name, config, root, threads) for name, config in missing.items()]
    failures: dict[str, Failure] = {}
    with SweepProgress(tasks) as progress:
        for name in configs.keys() - missing.keys():
            progress.console.print(f"{name}: up to date", markup=False)
        with contextlib.closing(scheduler.run(tasks)) as events:
            for event in events:
                if event is None:
                    progress.refresh()
                    continue
                if event.failure is not None:
                    failures[event.task.name] = event.failure
                elif event.ended:
                    mark_done(RunDir(event.task.out), missing[event.task.name])
                progress.show(event)
    return failures


def _task(name: str, config: TrainConfig, root: Path, threads: int | None) -> SweepTask:
    first = name == PRETRAINED
    stages = ("pretrain",) if first else ("search", "finetune")
    return SweepTask(
        name=name,
        out=(root / name).resolve(),
        config=to_dict(config),
        first_stage=first,
        epochs={stage: getattr(config, stage).epochs for stage in stages},
        threads=threads,
    )


def _withdraw(paths: SweepDir) -> None:
    """Remove the files that were written before the input was refused."""
    paths.settings.unlink(missing_ok=True)
    (paths.pretrained.root / "train.log").unlink(missing_ok=True)
    (paths.root / LOCK).unlink(missing_ok=True)
    for directory in (paths.pretrained.root, paths.root):
        with contextlib.suppress(OSError):  # the directory has other files
            directory.rmdir()
