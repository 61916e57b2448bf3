"""Plain supervised training: what pretraining does to the float network, and fine-tuning to the frozen one."""

from typing import Any

from torch import Tensor

from sbs_train.contract.config import FitConfig
from sbs_train.inputs.state import load_state
from sbs_train.inputs.tensors import fitting_state
from sbs_train.stages.average import WeightAverage
from sbs_train.stages.context import Context
from sbs_train.stages.descent import descent
from sbs_train.stages.loop import Best, copy_state, evaluate, fit, reestimate_batchnorm, schedule, sgd
from sbs_train.stages.plans import Network


def train_supervised(
    ctx: Context,
    stage: str,
    config: FitConfig,
    network: Network,
    groups: list[dict[str, Any]],
    *,
    settings: str,
    ema: float = 0.0,
) -> float:
    """Minimise the cross-entropy; the weights of the best epoch on the validation split are kept.

    With `ema`, the decay of a moving average of everything that is trained, that average is kept instead, with
    BatchNorm statistics of its own. `groups` are the parameter groups to train, `settings` hashes everything the stage
    depends on. Returns the seconds that earlier sessions spent on it.
    """
    best = Best(lambda payload: fitting_state("best", payload, network.model.state_dict()))
    average = WeightAverage((p for group in groups for p in group["params"]), ema) if ema else None

    def end_epoch(epoch: int, scalars: dict[str, float]) -> dict[str, float]:
        val = evaluate(ctx.data, network.model, ctx.data.val, ctx.ranks)
        best.offer(val["top1"], epoch, lambda: copy_state(network.model))
        return {"val_top1": val["top1"], "val_loss": val["loss"]}

    with descent(ctx, network, sgd(groups, config)) as down:

        def train_step(x_NCHW: Tensor, y_N: Tensor, step: int) -> dict[str, Tensor]:
            loss = down.step(x_NCHW, y_N)
            if average is not None:
                average.update()
            return {"loss": loss}

        earlier_s = fit(
            ctx,
            stage,
            config,
            model=network.model,
            optimizers=[(down.optimizer, schedule(config))],
            train_step=train_step,
            end_epoch=end_epoch,
            best=best,
            state={} if average is None else {"average": average},
            settings=settings,
        )
    if average is not None:
        average.take()
        reestimate_batchnorm(ctx, network.model)
    else:
        load_state(network.model, best.payload)
    network.model.eval()
    return earlier_s
