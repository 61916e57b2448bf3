"""The command `sbs-train`: a float model and its data → a run directory."""

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import tyro

from sbs_train.contract import console, rundir
from sbs_train.contract.config import TrainConfig, load_config, plain_name, require_named, values_of
from sbs_train.contract.errors import SbsError
from sbs_train.contract.launch import this_launch
from sbs_train.contract.trust import absolute_name, require_model, require_task, trusting
from sbs_train.recipes import DEFAULT_RECIPE, PRESETS, RECIPES
from sbs_train.sweep.command import Sweep

if TYPE_CHECKING:
    from sbs_train.contract.plan import Plan
    from sbs_train.stages.search import Found

PROG = "sbs-train"
LATEST = Path("runs/latest")

Flag = tyro.conf.FlagCreatePairsOff[bool]
Command = TypeVar("Command", "Train", Sweep)


@dataclass(frozen=True, kw_only=True)
class Train(TrainConfig):
    """Compress a network: pretrain, calibrate, search, finetune.

    The first argument may be a recipe (see `sbs-train recipes`); its settings are the defaults below. Other commands:
    sbs-train sweep, profile, evaluate, recipes; each has its own --help.
    """

    preset: Literal["paper"] | None = None
    """paper: search as the paper does (its grids, learned thresholds, fixed lambda) instead of our defaults."""
    resume: Flag = False
    """Go on with the run in --out (runs/latest unless given) from its last checkpoint."""
    trust: Flag = False
    """With --resume: let the Python files run that the run names as its model and task; naming them does so, too."""
    json: Flag = False
    """Print one JSON document as the last line of stdout."""
    verbose: Flag = False
    """Show the traceback of an error."""

    @staticmethod
    def stored(out: Path | None) -> dict[str, Any]:
        """The settings of the run that `--resume` goes on with."""
        config = load_config(_open_run(out or LATEST).config)
        require_named(config, str(out or LATEST))
        return values_of(config)

    def execute(self) -> int:
        """Run all stages; exit 1 if the target was not reached."""
        from sbs_train.contract.console import keep_freed_memory
        from sbs_train.stages.train import train
        from sbs_train.tables import layers_table, print_table, stages_table

        config = TrainConfig(**values_of(self))
        config = dataclasses.replace(config, model=absolute_name(config.model), task=absolute_name(config.task))
        out = self.out or (
            LATEST if self.resume else Path(f"runs/{plain_name(config)}-{time.strftime('%Y%m%d-%H%M%S')}")
        )
        if out.name == LATEST.name and not self.resume:
            raise SbsError(f"--out {out}: `latest` is the link to the newest run; choose another name")
        if self.resume:
            out = _open_run(out).root.resolve()
        keep_freed_memory()
        outcome = train(config, out, fresh=not self.resume)
        if not outcome.first:
            return 0
        print_table(layers_table(outcome.plan))
        print_table(stages_table(outcome.plan, outcome.metrics))
        print(f"run: {out}")
        if not outcome.found.reached:
            console.print_error(PROG, f"{_missed(config, outcome.plan, outcome.found)} is in {out}")
        if self.json:
            console.print_json(
                {
                    "run": str(out),
                    "target": config.target,
                    "reached": outcome.found.reached,
                    "reachable": list(outcome.found.reachable),
                    "bops_fp32": outcome.plan.cost.bops_fp32,
                    "bops": outcome.plan.cost.bops,
                    "reduction": outcome.plan.cost.reduction,
                    "metrics": rundir.read_json(outcome.run.metrics),
                }
            )
        return 0 if outcome.found.reached else 1


def _missed(config: TrainConfig, plan: "Plan", found: "Found") -> str:
    """A sentence for limits that a plan misses: which no plan meets, or why this one does not, and the best plan."""
    from sbs_train.tables import si

    def cost_at(reduction: float) -> str:
        """A reduction as a text: itself in BOPs, or as the milliseconds of that reduction."""
        if found.expected_ms is None:
            return f"{reduction:.4g}x"
        return f"{found.expected_ms * found.reduction / reduction:.4g} ms"

    low, high = found.reachable
    left = "" if config.cost else _float_part(plan)  # with a device, float is a choice
    span = f"which goes from {cost_at(low)} to {cost_at(high)}{left}"
    target, bops, least = f"--target {config.target}", f"--max-bops {config.max_bops}", found.space.least_bops()
    by = f"cannot be reached by this model in mode {config.mode}"
    said = []
    if found.wanted is not None and found.wanted > high * (1 + 1e-6):
        said.append(f"{target} {by}, {span}")
    if found.most_bops is not None and least > found.most_bops * (1 + 1e-6):
        said.append(f"{bops} {by}, which needs {si(least)} BOPs at least")
    if not said and not config.search.epochs:
        said.append(f"--search.epochs 0 searches no plan for {target}; give it epochs, or --target none")
    if not said and found.most_bops is None:
        said.append(f"the search did not reach {target} and ended above it; raise --search.epochs")
    together = f"{target} and {bops} together {by}, {span} and down to {si(least)} BOPs"
    best = cost_at(found.reduction) + (f", {si(plan.cost.bops)} BOPs" if found.most_bops is not None else "")
    return f"{'; '.join(said) or together}; the best plan ({best})"


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Layers, MACs, FP32 BOPs and channel groups of a model, and what cannot be pruned. Downloads nothing."""

    model: str = "resnet20"
    """resnet20, resnet56 or mobilenetv2 (built in), torchvision:NAME, timm:NAME, or path/to/file.py:factory."""
    task: Literal["classification", "segmentation"] = "classification"
    """What the model is tried on for training."""
    input: str = "3,32,32"
    """Channels, height and width of one image."""
    classes: int | None = None
    """10 for built-in models, 1000 (ImageNet) for others, unless given."""
    width: int = 16
    """Channels of the first stage (ResNets) or of the stem (mobilenetv2: a multiple of 8, 32 is multiplier 1.0)."""
    cost: Path | None = None
    """device.json of `sbs-deploy profile-device` with this model: also print which budgets in milliseconds can be
    reached, and the cliffs, where a few percent more milliseconds keep many more MACs."""
    json: Flag = False
    """Print one JSON document as the last line of stdout."""
    verbose: Flag = False
    """Show the traceback of an error."""

    def execute(self) -> int:
        """Trace the model and print what it costs."""
        from sbs_train.stages.profile import profile
        from sbs_train.tables import cliffs_table, print_table, profile_tables

        found = profile(self.model, self.input, self.classes, self.width, self.cost, self.task)
        for table in profile_tables(found):
            print_table(table)
        if found["training"]:
            print(f"cannot be trained: {found['training']}")
        if found["export"]:
            print(f"cannot be deployed: {found['export']}")
        if budgets := found.get("budgets"):
            print_table(cliffs_table(budgets))
            (least, most), (slow, fast) = budgets["reachable_ms"], budgets["reachable_x"]
            print(f"plans take {least:.4g} to {most:.4g} ms there, {fast:.2f}x to {slow:.2f}x of dense FP32")
        if self.json:
            console.print_json(found)
        return 0


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """The task's metrics of a run's network on the test split."""

    run: tyro.conf.Positional[Path] = LATEST
    """Run directory."""
    stage: Literal["fp32", "search", "finetune"] = "finetune"
    model: str | None = None
    """path/to/file.py:factory that the run was trained with: names it, so that it may run."""
    task: str | None = None
    """The same for the run's task."""
    trust: Flag = False
    """Let the Python files run that the run names as its model and its task."""
    json: Flag = False
    """Print one JSON document as the last line of stdout."""
    verbose: Flag = False
    """Show the traceback of an error."""

    def execute(self) -> int:
        """Restore the network and evaluate it."""
        from sbs_train.stages.profile import evaluate_run

        with trusting(everything=self.trust, model=self.model, task=self.task):
            metrics = evaluate_run(rundir.open_run(self.run), self.stage)
        print(console.metrics_line(metrics))
        if self.json:
            console.print_json(metrics)
        return 0


@dataclass(frozen=True, kw_only=True)
class Recipes:
    """The named recipes, one a line with model, data and target."""

    json: Flag = False
    """Print one JSON document as the last line of stdout."""
    verbose: Flag = False
    """Show the traceback of an error."""

    def execute(self) -> int:
        """Print all recipes."""
        for name, recipe in RECIPES.items():
            print(
                f"{name:<24} task {recipe.task}  model {recipe.model}  data {recipe.data}  target {recipe.target}  "
                f"optimizer {recipe.finetune.optimizer}"
            )
        if self.json:
            fields = ("task", "model", "data", "target")
            console.print_json({name: {f: getattr(recipe, f) for f in fields} for name, recipe in RECIPES.items()})
        return 0


COMMANDS: dict[str, type[Any]] = {"profile": Profile, "evaluate": Evaluate, "recipes": Recipes}


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run one command; returns the exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)

    def parse() -> Any:
        if given and given[0] in COMMANDS:
            kind, name = COMMANDS[given[0]], f"{PROG} {given[0]}"
            return console.parse_arguments(PROG, lambda: tyro.cli(kind, prog=name, args=given[1:]))
        if given and given[0] == "sweep":
            return _parse_recipe(Sweep, f"{PROG} sweep", given[1:])
        return _parse_recipe(Train, PROG, given)

    return console.run_parsed(PROG, parse)


def _parse_recipe(kind: type[Command], prog: str, given: list[str]) -> Command:
    """A command whose first argument may be a recipe."""
    name, rest = (given[0], given[1:]) if given and not given[0].startswith("-") else (None, given)
    if name is not None and name not in RECIPES:
        raise SbsError(f"unknown recipe or command {name}; choose one of {', '.join([*RECIPES, *COMMANDS])}")
    defaults = values_of(RECIPES[name or DEFAULT_RECIPE])
    peek = argparse.ArgumentParser(add_help=False)
    peek.add_argument("--resume", action="store_true")
    peek.add_argument("--out", type=Path, nargs="?")
    peek.add_argument("--preset", nargs="?")
    peek.add_argument("--model", nargs="?")
    peek.add_argument("--task", nargs="?")
    peek.add_argument("--trust", action="store_true")
    peeked = peek.parse_known_args(rest)[0]
    if peeked.resume and name is None:
        # Without a recipe a resumed run keeps its own settings; flags change single ones.
        defaults = {**kind.stored(peeked.out), "out": None}
        with trusting(everything=peeked.trust):
            if peeked.model is None:
                require_model(defaults["model"], peeked.out or LATEST)
            if peeked.task is None:
                require_task(defaults["task"], peeked.out or LATEST)
    if peeked.preset in PRESETS:
        config = TrainConfig(**{name: defaults[name] for name in values_of(TrainConfig())})
        defaults |= values_of(PRESETS[peeked.preset](config))
    default = kind(**defaults)
    return console.parse_arguments(PROG, lambda: tyro.cli(kind, prog=prog, args=rest, default=default))


def _float_part(plan: "Plan") -> str:
    """A sentence on how much of the network a plan leaves in float."""
    if not any(layer.quantized for layer in plan.layers):
        return ""  # mode prune
    left = sum(layer.macs for layer in plan.layers if not layer.quantized) / sum(layer.macs for layer in plan.layers)
    return f" ({100 * left:.0f} % of the MACs stay in float, see `sbs-train profile`)" if left >= 0.005 else ""


def _open_run(path: Path) -> rundir.RunDir:
    try:
        return rundir.open_run(path)
    except SbsError as error:
        if this_launch().nodes == 1:
            raise
        raise SbsError(
            f"{error}; to resume on several machines, keep the run on a disk that all of them see"
        ) from error


if __name__ == "__main__":
    raise SystemExit(main())
