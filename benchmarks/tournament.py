"""Does a searched plan ever end below the uniform plan of its BOPs? Validation loss after equal training.

From the same float weights: the search with its tournament, then fine-tuning; and the uniform plan, fine-tuned for as
many steps as search, tournament and fine-tuning together. The test set takes no part.

    python benchmarks/tournament.py                     MobileNetV2 (width 8) and ResNet-20 (width 4), digits, 3 seeds
"""

import argparse
import dataclasses
import json
from pathlib import Path

from sbs_train.contract.config import CalibrateConfig, FinetuneConfig, PretrainConfig, SearchConfig, TrainConfig
from sbs_train.contract.console import keep_freed_memory
from sbs_train.contract.rundir import create_run, read_json
from sbs_train.network.network import Network, fastest_layout
from sbs_train.stages.calibrate import calibrate
from sbs_train.stages.context import Context, Stage, open_context
from sbs_train.stages.finetune import train_frozen
from sbs_train.stages.loop import evaluate
from sbs_train.stages.named import model_for, network_of
from sbs_train.stages.pretrain import pretrain
from sbs_train.stages.rule import freeze
from sbs_train.stages.search import search, search_space
from sbs_train.tasks.load import task_of

EPOCH = 20


def main() -> None:
    """Train what is missing below --work, and print one Markdown row for each network and seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", default=["resnet20:4", "mobilenetv2:8"], help="MODEL:WIDTH")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--bits", type=int, nargs=2, default=[2, 4], help="of weights and inputs of the uniform plan")
    parser.add_argument("--epochs", type=int, nargs=3, default=[8, 5, 6], help="pretraining, search, fine-tuning")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--work", type=Path, default=Path("runs/tournament"))
    args = parser.parse_args()
    keep_freed_memory()
    print("| network, seed | reduction | search with tournament | uniform | kept | tournament, part of search |")
    print("|---|---|---|---|---|---|")
    for net in args.nets:
        for seed in args.seeds:
            model, _, width = net.partition(":")
            pretraining, searching, tuning = args.epochs
            config = TrainConfig(
                model=model,
                width=int(width),
                data=args.data,
                seed=seed,
                batch_size=64,
                pretrain=PretrainConfig(epochs=pretraining, steps_per_epoch=EPOCH, lr=0.05),
                calibrate=CalibrateConfig(batches=4),
                search=SearchConfig(epochs=searching, steps_per_epoch=EPOCH),
                finetune=FinetuneConfig(epochs=tuning, steps_per_epoch=EPOCH),
            )
            print(row_of(config, args.bits, args.work / f"{model}-w{width}-s{seed}"), flush=True)


def row_of(config: TrainConfig, bits: list[int], path: Path) -> str:
    """Train both plans; a row of the table."""
    ctx, network = opened(config, path)
    space = search_space(network)
    count = len(space.searched)
    reduction = space.reduction([bits[0]] * count, [bits[1]] * count, [1.0] * len(space.prunable))
    ctx.config = dataclasses.replace(config, target=f"{reduction * 0.9999:.3f}x")
    found = search(ctx, network)
    ours = tuned(ctx, network, "ours")
    table = read_json(ctx.run.metrics)
    tournament, seconds = table["search"]["tournament"], table["seconds"]["search"]
    kept = next(row["name"] for row in tournament["entrants"] if row["kept"])
    more = config.search.epochs + round(tournament["steps"] / EPOCH)
    longer = dataclasses.replace(config.finetune, epochs=config.finetune.epochs + more)
    ctx, network = opened(dataclasses.replace(config, finetune=longer), path)
    freeze(network, dict.fromkeys(space.searched, bits[0]), dict.fromkeys(space.searched, bits[1]))
    uniform = tuned(ctx, network, "uniform")
    part = tournament["seconds"] / (seconds - tournament["seconds"])
    (path / "tournament.json").write_text(json.dumps({"ours": ours, "uniform": uniform, **tournament}))
    name = f"{config.model} {config.width}, {config.seed}"
    return f"| {name} | {found.reduction:.1f}x | {ours:.4f} | {uniform:.4f} | {kept} | {100 * part:.0f} % |"


def opened(config: TrainConfig, path: Path) -> tuple[Context, Network]:
    """A context, and the pretrained and calibrated network."""
    task = task_of(config)
    ctx = open_context(create_run(path), config, task)
    ctx.console.quiet = True
    network = network_of(config, task, model_for(config, task))
    network.model.to(memory_format=fastest_layout(network, ctx.fabric.device))
    pretrain(ctx, network)
    calibrate(ctx, network)
    return ctx, network


def tuned(ctx: Context, network: Network, name: str) -> float:
    """Validation loss after fine-tuning the frozen network."""
    train_frozen(ctx, Stage(name=f"finetune-{name}", output="finetune", made_from={"plan": name}), network)
    return evaluate(ctx, network.model, "val")["loss"]


if __name__ == "__main__":
    main()
