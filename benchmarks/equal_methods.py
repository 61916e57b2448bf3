"""What prunes in benchmarks/equal_latency.py beside our search: rankings of Torch-Pruning, as channels our plans keep.

Torch-Pruning ranks and chooses on the float network; a plan of ours keeps the channels it would leave. So all methods
share quantizers, fine-tuning, export and engine, and differ in which channels are there.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import Tensor, nn

from sbs_train.contract import rundir
from sbs_train.contract.config import TrainConfig, save_config
from sbs_train.contract.plan import ModelSpec
from sbs_train.inputs.data import dataset_of
from sbs_train.inputs.models import build_model
from sbs_train.network.network import Network, fastest_layout
from sbs_train.stages.calibrate import calibrate
from sbs_train.stages.context import Context, Stage, open_context
from sbs_train.stages.finetune import finetune
from sbs_train.stages.loop import reestimate_batchnorm
from sbs_train.stages.named import model_for, named_network, network_of
from sbs_train.stages.pretrain import pretrain
from sbs_train.stages.rule import freeze
from sbs_train.stages.runner import Made, output_hash, train_stage
from sbs_train.stages.weights import load_weights
from sbs_train.tasks.load import task_of

RANKINGS = ("taylor", "magnitude", "hessian", "isomorphic", "uniform")
"""isomorphic: Taylor, compared within layers of one structure only; uniform: the same part of every layer, by
magnitude. All others compare channels of the whole network."""
OURS, NARROW = "ours", "narrower"
METHODS = (OURS, *RANKINGS, NARROW)
"""Everything that is compared."""
IMAGES = 512
"""Training images for gradients; the Hessian, which takes one image at a time, has an eighth."""
MOST = 0.9
"""Largest part of a layer that may go."""

Kept = dict[str, list[int]]


class Ranking:
    """One ranking of a pretrained network's channels, from which plans of any size are taken."""

    def __init__(self, method: str, config: TrainConfig, round_to: int) -> None:
        """`config` names the network, its float weights and the data; kept channels come in multiples of `round_to`."""
        assert config.weights is not None
        self._method, self._round_to = method, round_to
        data = dataset_of(config)
        spec = ModelSpec(name=config.model, arguments={"width": config.width, "num_classes": data.num_classes})
        self._network = named_network(config, spec, data.input)
        self._model = build_model(spec, data.input.channels)
        load_weights(self._model, config.weights)
        self._model.eval()
        x_NCHW, y_N = next(iter(data.train_batches(IMAGES, config.seed, 1)))
        self._example = x_NCHW[:2]
        self._gradients = _gradients(method, self._model, x_NCHW, y_N)

    def kept(self, ratio: float) -> Kept:
        """Kept channels of every pruned group where `ratio` of all channels goes."""
        model = copy.deepcopy(self._model)
        for name, gradient in self._gradients.items():
            model.get_parameter(name).grad = gradient.clone()
        names = {module: name for name, module in model.named_modules()}
        head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
        pruner = tp.pruner.BasePruner(
            model,
            self._example,
            importance=_IMPORTANCE[self._method](),
            global_pruning=self._method != "uniform",
            isomorphic=self._method == "isomorphic",
            pruning_ratio=ratio,
            max_pruning_ratio=MOST,
            round_to=self._round_to,
            ignored_layers=[head],
        )
        groups = {group.id: group for group in self._network.topology.groups}
        kept: Kept = {}
        for pruned in pruner.step(interactive=True):
            dependency, channels = pruned[0]
            group = groups[self._network.topology.layers[names[dependency.target.module]].group_out]
            assert group.prunable and group.id not in kept, f"Torch-Pruning prunes {group.id}, our plans do not"
            kept[group.id] = sorted(set(range(group.size)) - set(channels))
            pruned.prune()
        return kept


_IMPORTANCE: dict[str, Callable[[], Any]] = {
    "taylor": tp.importance.GroupTaylorImportance,
    "isomorphic": tp.importance.GroupTaylorImportance,
    "magnitude": tp.importance.GroupMagnitudeImportance,
    "uniform": tp.importance.GroupMagnitudeImportance,
    "hessian": tp.importance.GroupHessianImportance,
}


def _gradients(method: str, model: nn.Module, x_NCHW: Tensor, y_N: Tensor) -> dict[str, Tensor]:
    """What the importance expects as gradients: none, those of a batch, or the mean of their squares over images.

    `accumulate_grad` of Torch-Pruning 1.6 would keep the squares of the last image alone: it looks for names among
    parameters.
    """
    found: dict[str, Tensor] = {}
    if method in ("taylor", "isomorphic"):
        F.cross_entropy(model(x_NCHW), y_N).backward()  # type: ignore[no-untyped-call]
        found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    elif method == "hessian":
        images = len(y_N) // 8
        for i in range(images):
            model.zero_grad()
            F.cross_entropy(model(x_NCHW[i : i + 1]), y_N[i : i + 1]).backward()  # type: ignore[no-untyped-call]
            for name, p in model.named_parameters():
                assert p.grad is not None
                found[name] = found.get(name, torch.zeros_like(p)) + p.grad**2 / images
    model.zero_grad()
    return found


def train_plan(config: TrainConfig, kept: Kept, out: Path) -> None:
    """A run like any other whose search is given: the float weights of `config`, these channels, 8 bits, fine-tuning.

    Stages that are current are skipped, so an interrupted run goes on.
    """
    run = rundir.create_run(out)
    with rundir.locked(run.root, "equal_latency"):
        save_config(config, run.config)
        ctx = open_context(run, config, task_of(config))
        network = _network(ctx)
        pretrain(ctx, network)
        calibrate(ctx, network)

        def given() -> Made:
            plan = freeze(network, {}, {}, kept)
            reestimate_batchnorm(ctx, network.model)
            return Made(plan=plan, metrics={"history": []})

        made_from = {"calibration": output_hash(ctx, "calibration"), "kept": rundir.hash_of(kept)}
        plan = train_stage(ctx, network, Stage(name="search", output="search", made_from=made_from), given)
        assert plan is not None
        finetune(ctx, network, plan)
        ctx.close()


def _network(ctx: Context) -> Network:
    network = network_of(ctx.config, ctx.feed.task, model_for(ctx.config, ctx.feed.task))
    network.model.to(memory_format=fastest_layout(network, ctx.fabric.device))
    return network
