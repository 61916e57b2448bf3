"""Stage 1: train the float network, or take the weights a user brings."""

from sbs_train.contract import rundir
from sbs_train.contract.config import DATA_FIELDS, GIVEN, TRAIN_FIELDS
from sbs_train.contract.trust import is_code
from sbs_train.inputs.zoo import load_published
from sbs_train.network.network import Network
from sbs_train.stages.context import Context, Stage
from sbs_train.stages.loop import reestimate_batchnorm
from sbs_train.stages.runner import Made, read_weights, settings_hash, train_stage
from sbs_train.stages.supervised import train_supervised
from sbs_train.stages.weights import hash_of_state

SETTLED = 50
"""Steps after which BatchNorm's initial statistics weigh little (0.9 to the power of 50)."""
SETTINGS = ("model", "width", "pretrained", *DATA_FIELDS, *TRAIN_FIELDS, "seed", "batch_size", "pretrain")


def pretrain(ctx: Context, network: Network) -> None:
    """Write float weights to checkpoints/fp32.safetensors and put them into `network`."""
    config, model = ctx.config, network.model
    given = config.weights
    made_from = {"settings": settings_hash(ctx, SETTINGS)}
    if given is not None:
        made_from["weights"] = ctx.ranks.on_first(lambda: rundir.sha256_of(given))
    at_hand = config.model.startswith(GIVEN) and given is None and not config.pretrain.epochs
    if at_hand:
        made_from["weights"] = ctx.ranks.on_first(lambda: hash_of_state(network.float_state()))
    stage = Stage(name="pretrain", output="fp32", made_from=made_from)

    def train() -> Made:
        if given is not None:
            read_weights(ctx, network, given)
            return Made(untrained=f"float weights from {given}")
        if config.pretrained:
            left = ctx.ranks.on_first(lambda: load_published(model, config.model))
            ctx.ranks.share(model)
            if left:
                ctx.log(f"pretrain: published weights do not fit {', '.join(left)}, which start anew")
        if not config.pretrain.epochs:
            if config.pretrained or is_code(config.model) or at_hand:  # a user's function returns its own weights
                return Made(untrained=f"float weights of {config.model.removeprefix(GIVEN)}")
            reestimate_batchnorm(ctx, model)  # random weights: their own statistics are as good as any
            return Made(untrained="random float weights")
        earlier_s = train_supervised(ctx, stage, config.pretrain, network)
        epoch = config.pretrain.steps_per_epoch or ctx.feed.steps_per_epoch
        if config.pretrain.epochs * epoch < SETTLED:
            reestimate_batchnorm(ctx, model)
        return Made(earlier_s=earlier_s)

    train_stage(ctx, network, stage, train)
