"""A whole run: pretrain → calibrate → search → finetune, each stage skipping itself where its output is current."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from sbs_train.contract import rundir
from sbs_train.contract.config import GIVEN, TRAIN_FIELDS, PretrainConfig, TrainConfig, save_config
from sbs_train.contract.documents import add_metrics
from sbs_train.contract.errors import SbsError
from sbs_train.contract.launch import this_launch
from sbs_train.contract.plan import Plan
from sbs_train.contract.records import Metrics
from sbs_train.contract.target import target_reduction
from sbs_train.inputs.exportable import export_problem
from sbs_train.network.carried import carry, refuse_searched
from sbs_train.network.network import Network, fastest_layout
from sbs_train.quant.folding import make_plain, plain_copy
from sbs_train.stages.calibrate import calibrate
from sbs_train.stages.context import Context, check_batch, check_device, open_context, open_fabric
from sbs_train.stages.failures import with_remedies
from sbs_train.stages.finetune import finetune
from sbs_train.stages.integers import equalise_filters
from sbs_train.stages.named import network_of
from sbs_train.stages.pretrain import pretrain
from sbs_train.stages.search import Found, search
from sbs_train.stages.weights import load_float_weights
from sbs_train.tasks.feed import Feed
from sbs_train.tasks.protocol import Divided, Task, as_task, require_whole
from sbs_train.tasks.rehearsal import training_problem

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Run:
    """Result of a finished run."""

    run: rundir.RunDir
    """Paths of its files."""
    plan: Plan
    found: Found
    """Result of the search, before fine-tuning."""
    metrics: Metrics
    model: nn.Module
    """The trained model, which computes the plan, in eval mode; `sbs_deploy.export` takes it with the plan."""
    first: bool
    """Whether this process is rank 0, the only one that prints."""

    @property
    def reached(self) -> bool:
        """Whether the plan fits the target."""
        return self.found.reached

    def __fspath__(self) -> str:
        """The run directory, so that the functions of `sbs_deploy` take the result as a run."""
        return str(self.run.root)


def compress(
    model: nn.Module,
    task: Task,
    *,
    target: str,
    out: str | Path,
    config: TrainConfig | None = None,
    by_name: bool = False,
    fresh: bool = False,
) -> Run:
    """Compress a model: pretrain, calibrate, search, fine-tune; together with other processes under `torchrun`.

    Everything a user can get wrong is checked before anything is written. To go on with a run that was stopped, call it
    again with the same task and `out` and a model of the same first weights, so make the model anew: stages whose
    settings did not change are skipped.

    Args:
        model: a float network with the weights to start from; its layers are swapped in place.
        task: see `sbs_train.Task`.
        target: a reduction of BOPs such as 30x, or BOPs such as 32G; with `config.cost` a latency such as 1.2ms.
        out: the run directory.
        config: all other settings. Without it the float network is not trained.
        by_name: `config.model` and `config.task` are names from which `sbs-train` makes this model and task, so that
            the command line can go on with the run. Otherwise config.json says that only your code can.
        fresh: refuse an `out` that already holds a run.

    Raises:
        SbsError: bad settings, missing data, a model that cannot be trained or exported, or an output directory that
            cannot be written to; a loss that is no longer finite, a full disk, or a process that died.
    """
    as_task(task, "task is")
    for name, value, kinds, example in (
        ("target", target, (str,), 'text such as "30x"'),
        ("out", out or None, (str, os.PathLike), "the path of the run directory"),
        ("config", config, (TrainConfig, type(None)), "sbs_train.TrainConfig(...)"),
    ):
        if not isinstance(value, kinds):
            raise SbsError(f"{name} is of type {type(value).__name__}; give {example}")
    settings = replace(TrainConfig(pretrain=PretrainConfig(epochs=0)) if config is None else config, target=target)
    if not by_name:
        model_name, task_name = (f"{GIVEN}{type(one).__qualname__}" for one in (model, task))
        settings = replace(settings, model=model_name, task=task_name)
        if unheeded := [name for name in TRAIN_FIELDS if getattr(settings, name)]:
            raise SbsError(f"config.{unheeded[0]} does not reach a task at hand; give it to the task itself")
    return in_run(model, task, settings, Path(out), _all_stages, fresh=fresh)


def in_run(
    model: nn.Module,
    task: Task,
    config: TrainConfig,
    out: Path,
    work: Callable[[Context, Network], T],
    *,
    fresh: bool = False,
) -> T:
    """The result of `work` on all ranks, in a locked run and with its network on the device; errors of `compress`."""
    check_device(config)
    fabric, ranks = open_fabric(config)

    def opened() -> T:
        network = ranks.each(lambda: _checked(model, task, config))
        with ExitStack() as held:
            run = ranks.on_first(lambda: _prepare(config, network, out, fresh, held))
            ctx = open_context(run, config, task, (fabric, ranks))
            held.callback(ctx.close)
            network.model.to(fabric.device)
            network.model.to(memory_format=fastest_layout(network, fabric.device))
            return work(ctx, network)

    refuse_searched(model)
    try:
        result = with_remedies(opened)
    except BaseException:
        make_plain(model)  # so that another call may take it
        raise
    ranks.leave()
    return result


def _all_stages(ctx: Context, network: Network) -> Run:
    _say_what_stays_in_float(ctx, network)
    pretrain(ctx, network)
    if not ctx.config.search.epochs:
        equalise_filters(network)
    calibrate(ctx, network)
    found = search(ctx, network)
    plan = finetune(ctx, network, found.plan)
    bad = int(ctx.ranks.sum(torch.tensor([float(getattr(ctx.feed.task, "bad_images", 0))])))
    metrics = ctx.ranks.on_first(lambda: add_metrics(ctx.run, _end(ctx.config, found, bad)))
    carry(network)
    model = network.model.eval()
    return Run(run=ctx.run, plan=plan, found=found, metrics=metrics, model=model, first=ctx.ranks.first)


def _checked(model: nn.Module, task: Task, config: TrainConfig) -> Network:
    """The network of a run whose settings, loss and export were tried."""
    config.check()
    if isinstance(task, Divided):
        check_batch(config, task.batch_size)
    feed, name = Feed(task=task, accumulate=config.accumulate), _named(config)
    network = network_of(config, task, model)
    _wanted(network)  # refuses a target or a device that does not fit before any work
    if problem := training_problem(network.model, feed, _at_once(config, task), train=_trains(config)):
        raise SbsError(f"{name}: {problem}")
    require_whole(task, network.model)
    if problem := export_problem(plain_copy(network.model), network.example):
        raise SbsError(f"{name}: {problem}")
    return network


def _trains(config: TrainConfig) -> bool:
    pretrains = config.weights is None and config.pretrain.epochs > 0
    return pretrains or config.search.epochs > 0 or config.finetune.epochs > 0


def _at_once(config: TrainConfig, task: Task) -> int:
    """Samples of one forward pass on one rank, where that is known: BatchNorm's statistics need several."""
    if not isinstance(task, Divided):
        return 2
    return task.batch_size // (config.accumulate * (1 if config.sync_batchnorm else this_launch().world))


def _named(config: TrainConfig) -> str:
    """The model as an error names it."""
    given = config.model.startswith(GIVEN)
    return f"the model {config.model.removeprefix(GIVEN)}" if given else f"--model {config.model}"


def _wanted(network: Network) -> float | None:
    """The reduction that the target asks for; None for the target none."""
    device, target = network.device_cost(), network.config.target
    if device is None:
        return target_reduction(target, "BOPs", network.bops_fp32)
    return target_reduction(target, "ms", device.reference)


def _prepare(config: TrainConfig, network: Network, out: Path, fresh: bool, held: ExitStack) -> rundir.RunDir:
    """Make the run directory; `held` keeps its lock."""
    _require_new(out, fresh)
    if config.weights is not None:
        load_float_weights(network, config.weights)
    run = rundir.create_run(out)
    held.enter_context(rundir.locked(run.root, "sbs-train"))
    _require_new(out, fresh)  # another process may have been faster
    save_config(config, run.config)
    rundir.link_latest(run)
    return run


def _require_new(out: Path, fresh: bool) -> None:
    if fresh and rundir.is_file(out / "config.json"):
        raise SbsError(f"{out} already holds a run; go on with it by --resume, or choose another --out")


def _say_what_stays_in_float(ctx: Context, network: Network) -> None:
    """Warn of layers that stay in float, before hours of training with a target out of reach."""
    share, wanted = network.topology.float_share, None if ctx.config.cost else _wanted(network)
    if wanted is not None and share * wanted > 1:
        ctx.log(
            f"{100 * share:.0f} % of the MACs stay in float, so --target {ctx.config.target} is out of reach (at most "
            f"{1 / share:.3g}x); `sbs-train profile` says why"
        )


def _end(config: TrainConfig, found: Found, bad_images: int) -> dict[str, Any]:
    """Entries of metrics.json about the whole run."""
    budget: dict[str, Any] = {
        "target": config.target,
        "unit": found.space.cost.unit,
        "reduction": found.reduction,
        "reached": found.reached,
        "reachable": list(found.reachable),
    }
    if found.space.cost.unit == "ms":
        device = None if found.device is None else found.device.model_dump()
        budget |= {"expected_ms": found.expected_ms, "max_bops": config.max_bops, "device": device}
    return {"budget": budget, **({"bad_images": bad_images} if bad_images else {})}
