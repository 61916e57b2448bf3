"""The end of a search: its plan against simple ones of no larger cost; the best on validation is kept.

    1. Every plan is frozen into the search's weights, BatchNorm re-estimated, and evaluated: that takes seconds.
    2. The best few train on for a short while, from the same weights and with the same batches.
    3. The best of these is moved step by step; a move is kept where the loss falls by more than its noise.

The validation split decides, by the loss; for a task that gives no loss by its score, whose noise is not known, so that
no move is tried. All steps depend on the seed alone, so that a tournament that was
interrupted repeats from the search's last checkpoint.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sbs_train.contract.plan import Plan
from sbs_train.contract.records import Entrant, Move
from sbs_train.contract.records import Tournament as Table
from sbs_train.inputs.state import load_state
from sbs_train.network.network import Network
from sbs_train.quant.sensitivity import Losses
from sbs_train.stages.choices import Choice, Choices
from sbs_train.stages.context import Context, Stopwatch
from sbs_train.stages.descent import descent
from sbs_train.stages.loop import copy_state, epoch_seed, evaluate, reestimate_batchnorm
from sbs_train.stages.moves import Moves
from sbs_train.stages.rankings import Ranking
from sbs_train.stages.rates import cosine, optimizer_of
from sbs_train.tasks.protocol import LOSS, measure_of

SEARCH = "search"
"""Name of the search's own plan."""
PART = 25
"""The search takes this many times the steps of one plan's training."""
NOISE = 2.0
"""A move is kept where the mean difference of the samples' losses exceeds this many standard errors."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much a tournament does, in proportion to its search."""

    steps: int
    """Training steps of each of the best plans."""
    batches: int
    """Batches that re-estimate BatchNorm, and as many that evaluate, for every plan and every move; after a training
    twice as many, and the whole validation split."""
    moves: int
    """Most moves that are tried."""

    @classmethod
    def after(cls, steps: int) -> "Effort | None":
        """For a search of so many steps, about a fifth of its time; None for one that is too short for a tournament."""
        if steps < PART:
            return None
        return cls(steps=steps // PART, batches=min(20, max(4, steps // 200)), moves=min(12, steps // 100))


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A plan after its short training."""

    name: str
    choice: Choice
    loss: float
    """On the validation split; infinite if the training diverged."""
    state: dict[str, Tensor]


class Tournament:
    """Evaluates and trains plans of one network from one set of weights."""

    def __init__(self, ctx: Context, choices: Choices, effort: Effort, teacher: nn.Module | None = None) -> None:
        self.ctx, self.choices, self.effort, self.teacher = ctx, choices, effort, teacher
        self.network: Network = choices.network
        self.start = copy_state(self.network.model)
        self.measure = LOSS
        """What the numbers of `Table` are."""

    def run(self, own: Plan, rankings: dict[str, Ranking], losses: Losses | None) -> tuple[Plan, Table]:
        """The best plan, which the network is then frozen to and has the weights of, and the table of all plans.

        Args:
            own: the search's plan; its weights are in the network.
            rankings: see `Choices.simple`.
            losses: what the search estimates of single choices; None if it does not.
        """
        watch, ctx, choices = Stopwatch(), self.ctx, self.choices
        entrants = ctx.ranks.on_first(lambda: self._entrants(own, rankings))
        ctx.log(f"search: tournament of {len(entrants)} plans, {self.effort.steps} steps for each of the best")
        before = {name: self._screened(choice) for name, choice in entrants.items()}
        few = sorted(entrants, key=before.__getitem__)[: ctx.config.search.tournament]
        trained = [self._trained(name, entrants[name], before[name]) for name in few]
        best = min(trained, key=lambda one: one.loss)
        if not math.isfinite(best.loss):  # every training diverged; the search's weights are as good as before
            best = Trained(name=few[0], choice=entrants[few[0]], loss=before[few[0]], state=self.start)
        choice, moves, tried = self._moved(best, losses)
        load_state(self.network.model, best.state)
        plan = choices.apply(choice)
        reestimate_batchnorm(ctx, self.network.model)
        after = {one.name: one.loss for one in trained if math.isfinite(one.loss)}
        rows = [
            Entrant(
                name=name,
                reduction=choices.reduction(one),
                val_loss=before[name] if math.isfinite(before[name]) else None,
                val_loss_trained=after.get(name),
                kept=name == best.name,
            )
            for name, one in entrants.items()
        ]
        seconds = round(watch.seconds, 3)
        ctx.log(
            f"search: plan {best.name} kept, with {len(moves)} of {tried} moves; the tournament took {seconds:.0f} s"
        )
        table = Table(
            measure=self.measure,
            entrants=rows,
            moves=moves,
            moves_tried=tried,
            steps=self.effort.steps,
            seconds=seconds,
        )
        return plan, table

    def _entrants(self, own: Plan, rankings: dict[str, Ranking]) -> dict[str, Choice]:
        """Plans by name, the search's first: those within the limits, or the search's alone if none is."""
        first = self.choices.of(own)
        simple = {name: choice for name, choice in self.choices.simple(rankings).items() if choice != first}
        return simple if simple and not self.choices.fits(first) else {SEARCH: first, **simple}

    def _screened(self, choice: Choice) -> float:
        """Loss of a choice with the search's weights, over a part of the validation split."""
        load_state(self.network.model, self.start)
        self._freeze(choice)
        return self._loss(self.effort.batches)

    def _trained(self, name: str, choice: Choice, before: float) -> Trained:
        """A choice after a short training from the search's weights."""
        ctx, network, config, steps = self.ctx, self.network, self.ctx.config.search, self.effort.steps
        load_state(network.model, self.start)
        self.choices.apply(choice)
        seed = epoch_seed(ctx.config.seed, "tournament", 0)
        with descent(ctx, network, optimizer_of(network, config, config.lr_clip), self.teacher) as down:
            rates = [float(group["lr"]) for group in down.optimizer.param_groups]
            network.model.train()
            for index, parts in enumerate(ctx.feed.steps(seed, steps)):
                for group, rate in zip(down.optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * cosine(index / steps)
                torch.manual_seed(epoch_seed(seed, f"rank {ctx.ranks.rank}", index))
                down.step(parts)
        loss = self._whole_loss()
        ctx.log(f"search: plan {name}: validation {self.measure} {before:.4g}, {loss:.4g} after {steps} steps")
        return Trained(name=name, choice=choice, loss=loss, state=copy_state(network.model))

    def _moved(self, best: Trained, losses: Losses | None) -> tuple[Choice, list[Move], int]:
        """The best choice after single moves, the moves, and how many were tried; the weights stay as they are."""
        ctx, moves, made, tried = self.ctx, Moves(self.choices, losses, self.ctx.config.seed), list[Move](), 0
        seen, choice = {best.choice}, best.choice
        load_state(self.network.model, best.state)
        now_N = self._losses(choice)
        if now_N is None:
            return choice, [], 0
        while tried < self.effort.moves:
            around = ctx.ranks.on_first(lambda: moves.around(choice))  # noqa: B023  called at once
            found = next(((name, to) for name, to in around if to not in seen), None)
            if found is None:
                break
            name, to = found
            seen.add(to)
            tried += 1
            then_N = self._losses(to)
            assert then_N is not None
            change, error = self._change(then_N - now_N)
            if change < -NOISE * error:
                choice, now_N = to, then_N
                made.append(Move(name=name, change=change, error=error))
        if made:  # a move that helps a part of the samples by chance must not pass
            self.choices.apply(choice)
            if not self._whole_loss() < best.loss:
                return best.choice, [], tried
        return choice, made, tried

    def _freeze(self, choice: Choice) -> None:
        """Freeze the network to a choice, with its weights as they are and BatchNorm re-estimated."""
        self.choices.apply(choice)
        reestimate_batchnorm(self.ctx, self.network.model, self.effort.batches)

    def _losses(self, choice: Choice) -> Tensor | None:
        """`loss_N` of a part of the validation split after `_freeze`; None if the task gives no loss by sample."""
        self._freeze(choice)
        return self._val_losses(self.effort.batches)

    def _whole_loss(self) -> float:
        """Loss over the validation split, as the network is frozen."""
        reestimate_batchnorm(self.ctx, self.network.model, 2 * self.effort.batches)
        return self._loss(None)

    def _loss(self, batches: int | None) -> float:
        """Loss, or what stands for it, over the first batches of the validation split, or over all where the task
        gives no loss by sample; infinite if it is not finite."""
        loss_N = self._val_losses(batches)
        if loss_N is not None:
            return self._mean(loss_N)
        self.measure, value = measure_of(evaluate(self.ctx, self.network.model, "val"))
        return value if math.isfinite(value) else math.inf

    def _val_losses(self, batches: int | None) -> Tensor | None:
        return self.ctx.feed.sample_losses(self.network.model.eval(), batches)

    def _mean(self, loss_N: Tensor) -> float:
        """The mean over the samples of all ranks; infinite if it is not finite."""
        total, count = self.ctx.ranks.sum(torch.stack([loss_N.sum(), loss_N.new_tensor(len(loss_N))])).tolist()
        return total / count if count and math.isfinite(total) else math.inf

    def _change(self, difference_N: Tensor) -> tuple[float, float]:
        """Mean and standard error of differences over the samples of all ranks; infinite if they are not finite."""
        sums = [difference_N.sum(), difference_N.square().sum(), difference_N.new_tensor(len(difference_N))]
        total, squares, count = self.ctx.ranks.sum(torch.stack(sums)).tolist()
        if not math.isfinite(squares) or count < 2:
            return math.inf, math.inf
        mean = total / count
        return mean, math.sqrt(max(squares / count - mean**2, 0.0) / (count - 1))
