"""A whole run: pretrain → calibrate → search → finetune, each stage skipping itself where its output is current."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from sbs_train.contract import rundir
from sbs_train.contract.config import TrainConfig, save_config
from sbs_train.contract.documents import add_metrics
from sbs_train.contract.errors import SbsError
from sbs_train.contract.launch import this_launch
from sbs_train.contract.plan import ModelSpec, Plan
from sbs_train.contract.records import Metrics
from sbs_train.contract.target import target_reduction
from sbs_train.inputs.data import Dataset, dataset_of
from sbs_train.inputs.exportable import export_problem
from sbs_train.inputs.rehearsal import training_problem
from sbs_train.network.network import Network, fastest_layout
from sbs_train.quant.folding import plain_copy
from sbs_train.stages.calibrate import calibrate
from sbs_train.stages.context import Context, check_batch, check_device, open_context, open_fabric
from sbs_train.stages.failures import with_remedies
from sbs_train.stages.finetune import finetune
from sbs_train.stages.integers import equalise_filters
from sbs_train.stages.named import named_network
from sbs_train.stages.pretrain import pretrain
from sbs_train.stages.search import Found, search
from sbs_train.stages.weights import load_float_weights

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Result of a finished run."""

    run: rundir.RunDir
    plan: Plan
    found: Found
    """Result of the search, before fine-tuning."""
    metrics: Metrics
    first: bool
    """Whether this process is rank 0, the only one that prints."""


def train(config: TrainConfig, out: Path, *, fresh: bool = False) -> Outcome:
    """Run every stage in `out`, together with the other processes if `torchrun` started several.

    Everything a user can get wrong is checked before anything is written.

    Args:
        out: the run directory, as rank 0 has it.
        fresh: refuse an `out` that already holds a run.

    Raises:
        SbsError: bad settings, missing data, an unknown model, or an output directory that cannot be written to; a
            loss that is no longer finite, a full disk, or a process that died.
    """
    return _in_run(config, out, fresh, _all_stages)


def train_float(config: TrainConfig, out: Path) -> None:
    """Run pretraining alone, or finish it: float weights that several runs start from.

    Raises:
        SbsError: for the reasons that `train` names.
    """
    _in_run(config, out, False, pretrain)


def _in_run(config: TrainConfig, out: Path, fresh: bool, work: Callable[[Context, Network], T]) -> T:
    """The result of `work` on all ranks, in a locked run and with its network on the device."""
    check_device(config)
    fabric, ranks = open_fabric(config)

    def opened() -> T:
        data, network = ranks.each(lambda: _inputs(config))
        with ExitStack() as held:
            run = ranks.on_first(lambda: _prepare(config, network, out, fresh, held))
            ctx = open_context(run, config, data, (fabric, ranks))
            held.callback(ctx.close)
            network.model.to(fabric.device)
            network.model.to(memory_format=fastest_layout(network, fabric.device))
            return work(ctx, network)

    result = with_remedies(opened)
    ranks.leave()
    return result


def _all_stages(ctx: Context, network: Network) -> Outcome:
    _say_what_stays_in_float(ctx, network)
    pretrain(ctx, network)
    if not ctx.config.search.epochs:
        equalise_filters(network)
    calibrate(ctx, network)
    found = search(ctx, network)
    plan = finetune(ctx, network, found.plan)
    bad = int(ctx.ranks.sum(torch.tensor([float(ctx.data.bad_images)])))
    metrics = ctx.ranks.on_first(lambda: add_metrics(ctx.run, _end(ctx.config, found, bad)))
    return Outcome(run=ctx.run, plan=plan, found=found, metrics=metrics, first=ctx.ranks.first)


def _inputs(config: TrainConfig) -> tuple[Dataset, Network]:
    config.check()
    check_batch(config)
    data = dataset_of(config)
    spec = ModelSpec(name=config.model, arguments={"width": config.width, "num_classes": data.num_classes})
    network = named_network(config, spec, data.input)
    _wanted(network)  # refuses a target or a device that does not fit before any work
    if _trains(config) and (
        problem := training_problem(network.model, network.example, _at_once(config), data.num_classes)
    ):
        raise SbsError(f"--model {config.model}: {problem}")
    if problem := export_problem(plain_copy(network.model), network.example):
        raise SbsError(f"--model {config.model}: {problem}")
    return data, network


def _trains(config: TrainConfig) -> bool:
    pretrains = config.weights is None and config.pretrain.epochs > 0
    return pretrains or config.search.epochs > 0 or config.finetune.epochs > 0


def _at_once(config: TrainConfig) -> int:
    """Images of one forward pass on one rank: BatchNorm's statistics need several."""
    parts = config.accumulate * (1 if config.sync_batchnorm else this_launch().world)
    return config.batch_size // parts


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
