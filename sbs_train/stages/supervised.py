"""Plain supervised training, for pretraining (the float network) and fine-tuning (the frozen network)."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sbs_train.contract.config import FitConfig
from sbs_train.inputs.state import load_state
from sbs_train.inputs.tensors import fitting_state
from sbs_train.network.network import Network
from sbs_train.stages.context import Context, Stage
from sbs_train.stages.descent import descent
from sbs_train.stages.loop import (
    Best,
    Training,
    copy_state,
    evaluate,
    fit,
    reestimate_batchnorm,
    validated,
)
from sbs_train.stages.rates import optimizer_of, schedule
from sbs_train.tasks.protocol import Batch, score_of


class WeightAverage:
    """Exponential moving average of parameters (Polyak and Juditsky, 1992), one update a step."""

    def __init__(self, parameters: Iterable[Tensor], decay: float) -> None:
        self.parameters = list(parameters)
        self.decay = decay
        self.values = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average by 1 - decay towards the parameters."""
        torch._foreach_lerp_(self.values, self.parameters, 1 - self.decay)

    @torch.no_grad()
    def take(self) -> None:
        """Replace the parameters by their average."""
        torch._foreach_copy_(self.parameters, self.values)

    def state_dict(self) -> dict[str, Any]:
        """The averages, for checkpoints."""
        return {"values": self.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the averages from a checkpoint."""
        for value, saved in zip(self.values, state["values"], strict=True):
            value.copy_(saved)


def train_supervised(
    ctx: Context,
    stage: Stage,
    config: FitConfig,
    network: Network,
    *,
    lr_clip: float | None = None,
    ema: float = 0.0,
    teacher: nn.Module | None = None,
) -> float:
    """Minimise the task's loss; the weights of the best epoch on the validation split are kept.

    Args:
        lr_clip: peak learning rate of the clip values; None leaves them unchanged.
        ema: decay of a moving average of all trained parameters; if above 0, this average is kept instead of the best
            epoch, with BatchNorm statistics of its own.
        teacher: a network whose outputs are a second target; see teacher.py.

    Returns:
        Seconds that earlier sessions spent on the stage.
    """
    model = network.model
    best = Best(lambda payload: fitting_state("best", payload, model.state_dict()))
    optimizer = optimizer_of(network, config, lr_clip)
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    average = WeightAverage(trained, ema) if ema else None

    def end_epoch(epoch: int, scalars: dict[str, float]) -> dict[str, float]:
        val = evaluate(ctx, model, "val")
        best.offer(score_of(val)[1], epoch, lambda: copy_state(model))
        return validated(val)

    with descent(ctx, network, optimizer, teacher) as down:

        def step(parts: Sequence[Batch], step: int) -> dict[str, Tensor]:
            loss = down.step(parts)
            if average is not None:
                average.update()
            return {"loss": loss}

        training = Training(
            model=model,
            optimizers=[(down.optimizer, schedule(config))],
            step=step,
            end_epoch=end_epoch,
            best=best,
            state={} if average is None else {"average": average},
        )
        earlier_s = fit(ctx, stage, config, training)
    if average is not None:
        average.take()
        reestimate_batchnorm(ctx, model)
    else:
        load_state(model, best.payload)
    model.eval()
    return earlier_s
