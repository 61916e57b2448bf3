"""Stage 4: train weights and clip values of the frozen plan."""

from sbs_train.contract.config import LOSS_FIELDS
from sbs_train.contract.plan import Plan
from sbs_train.network.network import Network
from sbs_train.stages.context import Context, Stage
from sbs_train.stages.integers import snap_biases
from sbs_train.stages.loop import epoch_seed
from sbs_train.stages.outputs import with_ranges
from sbs_train.stages.plans import plan_of_network
from sbs_train.stages.runner import Made, output_hash, settings_hash, train_stage
from sbs_train.stages.supervised import train_supervised
from sbs_train.stages.teacher import teacher_of


def finetune(ctx: Context, network: Network, found: Plan) -> Plan:
    """Write plan.json and weights.safetensors of the run; returns the plan with its final clip values.

    Args:
        found: the plan of the search, which `network` is frozen to.
    """
    settings = settings_hash(ctx, (*LOSS_FIELDS, "seed", "batch_size", "finetune"))
    made_from = {"search": output_hash(ctx, "search"), "settings": settings}
    stage = Stage(name="finetune", output="finetune", made_from=made_from)

    def train() -> Made:
        earlier_s = train_frozen(ctx, stage, network) if ctx.config.finetune.epochs else 0.0
        plan = plan_of_network(network, {group.id: group.kept for group in found.groups})
        if network.quantized:
            snap_biases(network, plan)
            plan = ctx.ranks.on_first(lambda: _with_ranges(ctx, network, plan))
        return Made(plan=plan, earlier_s=earlier_s)

    plan = train_stage(ctx, network, stage, train)
    assert plan is not None
    return plan


def _with_ranges(ctx: Context, network: Network, plan: Plan) -> Plan:
    config = ctx.config
    examples = ctx.feed.whole.examples(epoch_seed(config.seed, "outputs", 0), config.calibrate.batches)
    return with_ranges(network, plan, examples, config.calibrate)


def train_frozen(ctx: Context, stage: Stage, network: Network) -> float:
    """Plain quantization-aware training of a frozen network with learned clip values.

    Returns the seconds that earlier sessions spent on the stage.
    """
    config = ctx.config.finetune
    teacher = teacher_of(ctx, network)
    return train_supervised(ctx, stage, config, network, lr_clip=config.lr_clip, ema=config.ema, teacher=teacher)
