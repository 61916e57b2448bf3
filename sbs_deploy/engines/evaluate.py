"""A task's own metrics of a built engine."""

from pathlib import Path

from sbs_deploy.backends.request import built_with
from sbs_deploy.backends.spec import Choice
from sbs_deploy.engines.artifacts import built_engines, engine_path
from sbs_deploy.engines.as_model import EngineModel
from sbs_deploy.engines.loading import load_engine
from sbs_train.contract import rundir
from sbs_train.contract.config import load_config, require_named
from sbs_train.contract.errors import SbsError
from sbs_train.contract.rundir import RunDir
from sbs_train.contract.trust import require_task
from sbs_train.tasks.feed import Feed
from sbs_train.tasks.load import task_of
from sbs_train.tasks.protocol import Task, as_task


def evaluate_engine(
    run: RunDir, task: Task | None, choice: Choice | None, *, precision: str, threads: int, trust: bool
) -> dict[str, float]:
    """Metrics on the test split; `sbs_deploy.evaluate` explains the arguments and the errors.

    Args:
        choice: the engine's backend; None takes the only engine of the precision.
    """
    given = None if task is None else as_task(task, "task is")
    path = _built(run, precision, choice)
    known = _task_of(run) if given is None else given
    details = rundir.read_manifest(path).details
    batch = built_with(details, path.name)[0].max if "profile" in details else None
    tensor = rundir.read_json(run.plan).get("schema_version") == 1
    with load_engine(path, threads=threads, trust=trust) as engine:
        return dict(Feed(task=known).evaluate(EngineModel(engine, batch, tensor=tensor), "test"))


def _built(run: RunDir, precision: str, choice: Choice | None) -> Path:
    build = f"sbs-deploy build {run.root} --engine {precision}"
    if choice is not None:
        path = engine_path(run, precision, choice)
        run.require(path, f"{build} {choice.backend.flags}")
        return path
    built = built_engines(run, precision)
    if not built:
        raise SbsError(f"{run.root} has no engine of precision {precision}; run `{build}` first")
    if len(built) > 1:
        raise SbsError(f"{run.engines} has {', '.join(path.name for path in built)}; choose one with --backend")
    return built[0]


def _task_of(run: RunDir) -> Task:
    config = load_config(run.config)
    require_named(config, str(run.root))
    require_task(config.task, run.config)
    return task_of(config)
