"""`Search`: bits and channels are decided while somebody's own loop trains the model.

The loop owns the data, the loss, the optimizer, the precision and the processes. `Search` sees two things: the passes
through the model, by a hook, and the gradients of its probes, in `step`.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sbs_train.contract.config import GIVEN, CalibrateConfig, Mode, SearchConfig, TrainConfig
from sbs_train.contract.errors import SbsError
from sbs_train.contract.grid import Family
from sbs_train.contract.plan import ModelSpec, Plan
from sbs_train.example import Example
from sbs_train.network.carried import carry, settle
from sbs_train.network.network import build_network
from sbs_train.quant.folding import make_plain
from sbs_train.stages.arguments import check_arguments, check_options, check_scale, examples_of, own_words
from sbs_train.stages.clips import first_clips, is_signed, release_unused, set_clips, set_signs
from sbs_train.stages.describe import Description, describe
from sbs_train.stages.limits import limit_of
from sbs_train.stages.loss_rule import LossRule
from sbs_train.stages.ranks import ranks_of
from sbs_train.stages.search import search_space

log = logging.getLogger("sbs_train")


FINITE_BY = 50
"""The step by which one has had finite gradients; a torch.amp.GradScaler finds its scale in fewer."""


class Search:
    """Decides the bits of every layer and the channels of every group while your loop trains the model.

    The model's convolutions and linear layers are swapped in place: parameters keep their names, and every quantizer
    adds a learned clip value, so make the optimizer afterwards. Wrap the model (DistributedDataParallel, torch.compile)
    afterwards too. Call `step` once per optimizer step, between `backward` and `optimizer.step`, and `finish` at the
    end. Passes without gradients (evaluation, a teacher) are not counted.

    The loss is taken for a mean over independent samples, up to a constant factor. With gradient accumulation, give
    every part its share of the loss, as usual.

    Under torch.distributed every process makes its own `Search` with the same arguments, on its own part of the data;
    all reach the same plan, and the first process's `calibration` counts.

    >>> import torch, sbs_train
    >>> from torch import nn
    >>> layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(512, 1)
    >>> model = nn.Sequential(*layers)
    >>> x = torch.randn(16, 3, 12, 12)
    >>> search = sbs_train.Search(model, x, target="40x", steps=20, calibration=[x])
    >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    >>> for _ in range(20):
    ...     loss = (model(x) - x.mean((1, 2, 3))[:, None]).square().mean()
    ...     loss.backward()
    ...     search.step()
    ...     optimizer.step(); optimizer.zero_grad()
    >>> plan = search.finish()
    >>> plan.cost.reduction >= 40
    True
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        *,
        target: str,
        steps: int,
        calibration: Iterable[Any],
        mode: Mode = "joint",
        cost: str | Path | None = None,
        keep: Mapping[str, int | Literal["float"]] | None = None,
        options: SearchConfig | None = None,
        grid: Family = "int8",
    ) -> None:
        """
        Args:
            model: any module, on any device, in float32. Trained as far as it goes: the search starts from its weights.
            example_inputs: two or more samples, as the model takes them: a tensor, a tuple (positional arguments) or a
                dict (keyword arguments) of tensors, which may be nested.
            target: "30x" (BOPs of dense FP32 over those of the plan) or "32G" (BOPs); with `cost` "1.2ms" or "2x".
            steps: calls of `step` that will come. Gates rest for the last part of them (`options.settle`).
            calibration: a few inputs without labels, as `example_inputs`; clip values start from them.
            mode: "joint", or only "quantize" or "prune".
            cost: device.json of `sbs-deploy profile-device` with this model: the target is then in milliseconds.
            keep: by fnmatch pattern of layer names, "float" or a number of bits; these layers are not pruned.
            options: candidate bits, group size and more. Its epochs and learning rates are the loop's business here.
            grid: "int8", or "paper" to compare with the paper.

        Raises:
            SbsError: an argument does not fit, the target is out of reach, or the model cannot be searched. The model
                is then as it was.
        """
        options = SearchConfig() if options is None else options
        with own_words():
            check_options(options)
        check_arguments(
            model=model, target=target, steps=steps, calibration=calibration, mode=mode, keep=keep, grid=grid
        )
        self.steps = steps
        self.plan: Plan | None = None
        self._step = 0
        self._device = next(model.parameters()).device
        self.ranks = ranks_of(self._device)
        name = f"{GIVEN}{type(model).__qualname__}"
        config = TrainConfig(
            model=name,
            task=f"{GIVEN}a loop of its own",
            target=target,
            mode=mode,
            grid=grid,
            search=options,
            cost=None if cost is None else Path(cost),
        )
        spec = ModelSpec(name=name, arguments={})
        example = Example.of(example_inputs).to(self._device)
        try:
            with own_words():
                self.network = build_network(config, model, example, spec, keep=keep)
                self._calibrate(calibration)
                self._space = search_space(self.network)
                self._rule = LossRule(self.network, self._space, [limit_of(self._space, target)], steps, self.ranks)
        except BaseException:
            make_plain(model)
            raise
        release_unused(self.network)
        carry(self.network)
        self._hook = model.register_forward_pre_hook(_OnPass(self), with_kwargs=True)
        self._rule.put_in_place()

    def step(self, *, grad_scale: float = 1.0) -> None:
        """Learn from the gradients of one optimizer step, and decide gates when it is time.

        Args:
            grad_scale: `scaler.get_scale()` where a `torch.amp.GradScaler` scales the loss. A step whose gradients are
                not finite, which the scaler leaves out too, teaches nothing.

        Raises:
            SbsError: there is no gradient, the search is over, no gradient was finite in 50 steps, or the loss does not
                depend on a searched layer.
        """
        self._check_step()
        check_scale(grad_scale)
        rule, sensitivity = self._rule, self._rule.sensitivity
        samples, probed = sensitivity.seen
        sensitivity.observe(samples, probed=probed, grad_scale=grad_scale)
        self._step += 1
        if self._step == rule.warm_up and sensitivity.unreached:
            self._refuse_unreached(sensitivity.unreached)
        if self._step == FINITE_BY:
            self._refuse_untaught()
        before = rule.losses
        rule.before(self._step)
        if rule.losses is not before and self.ranks.first:
            log.info("step %d of %d: %.4gx", self._step, self.steps, rule.reduction)

    def finish(self) -> Plan:
        """Close the gates for good, take the probes out and return the plan, which the model computes from now on.

        The plan's clip values are those of this moment; they go on learning in fine-tuning, and `sbs_deploy.export`
        writes the model's own.

        Raises:
            SbsError: too few steps were taken, none had finite gradients, or training diverged.
        """
        if self.plan is not None:
            return self.plan
        rule = self._rule
        if self._step < max(rule.settled, rule.warm_up + 1):
            raise SbsError(
                f"finish() after {self._step} of {self.steps} steps: gates rest from step {rule.settled} on; take the "
                f"other steps, or give Search fewer `steps`"
            )
        self._refuse_untaught()
        self._hook.remove()
        self.plan = rule.plan()
        settle(self.network, self.plan)
        release_unused(self.network)
        return self.plan

    def describe(self) -> Description:
        """The model's layers, additions and channel groups, and why some are left alone; `print` shows a table."""
        return describe(self.network)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed search needs besides the states of the model and the optimizer."""
        layers = self.network.layers
        return {
            "steps": self.steps,
            "step": self._step,
            "finished": self.plan is not None,
            "rule": self._rule.state_dict(),
            "sensitivity": self._rule.sensitivity.state_dict(),
            "signed": {name: is_signed(layer) for name, layer in layers.items()} if self.network.quantized else {},
            "signed_adds": [list(pair) for pair in self.network.adds.signed],
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a `state_dict` of a search with the same arguments.

        Load the model's and the optimizer's states too. A finished search is finished again.

        Raises:
            SbsError: the state is of another search.
        """
        if self.plan is not None:
            raise SbsError("load_state_dict() after finish(): this search is over; make a new one for the state")
        try:
            steps, step = state_dict["steps"], state_dict["step"]
        except (KeyError, TypeError) as error:
            raise SbsError("this is no state of a search; give what Search.state_dict() returned") from error
        if steps != self.steps:
            raise SbsError(f"the state is of a search of {steps} steps, not {self.steps}; give Search those")
        if not isinstance(step, int) or not 0 <= step <= steps:
            raise SbsError(f"the state says that {step} of {steps} steps were taken; give another one")
        try:
            self._rule.load_state_dict(state_dict["rule"])
            self._rule.sensitivity.load_state_dict(state_dict["sensitivity"])
            set_signs(self.network, state_dict["signed"], state_dict["signed_adds"])
        except (KeyError, ValueError, RuntimeError) as error:
            raise SbsError(f"the state is of another search ({error}); make Search with the same arguments") from error
        self._step = step
        self._rule.put_in_place()
        if state_dict["finished"]:
            self.finish()

    def begin_pass(self, inputs: Any) -> None:
        """Give the next rows of the probes to a pass through the model; its hook calls this."""
        device = next(iter(self.network.layers.values())).weight.device
        if device != self._device:  # moved since the last pass
            self._rule.to(device)
            self._rule.put_in_place()
            self._device = device
        found = self._rule.sensitivity.start_pass()
        # A layer that sees the samples one by one knows better, see `SBSLayer`.
        found.samples = next((len(leaf) for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.dim()), 1)
        if not self.network.quantized:  # no quantizer says that a gradient came back
            found.came_back()

    def _refuse_untaught(self) -> None:
        if not self._rule.sensitivity.count and (self._space.searched or self._space.prunable):
            raise SbsError(
                f"{self._step} steps taught nothing: gradients were not finite (lower the learning rate or the loss "
                f"scale), or other passes with gradients came before the one that trains (use torch.no_grad there)"
            )

    def _check_step(self) -> None:
        if self.plan is not None:
            raise SbsError("step() after finish(): the gates are closed; fine-tune without step()")
        if self._step == self.steps:
            raise SbsError(f"step() was called {self.steps} times before, the `steps` of this Search; call finish()")
        if not self._rule.sensitivity.has_gradients():
            raise SbsError("step() found no gradients; call it once between loss.backward() and optimizer.step()")
        if not self._rule.sensitivity.seen[0]:
            raise SbsError("the gradients came around the model's forward; call the model itself, not parts of it")

    def _refuse_unreached(self, names: Iterable[str]) -> None:
        name = next(name for name in self.network.layers if name in names)
        raise SbsError(
            f"the loss does not depend on {name}: no gradient came back in {self._step} steps; leave it out of the "
            f'search by keep={{"{name}": "float"}}, or use its output in the loss'
        )

    def _calibrate(self, calibration: Iterable[Any]) -> None:
        examples = (example.to(self._device) for example in examples_of(calibration))
        try:
            found = self.ranks.on_first(lambda: first_clips(self.network, examples, CalibrateConfig()))
        except SbsError:
            raise
        except (ValueError, TypeError, RuntimeError, AttributeError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise SbsError(f"calibration: {reason}; give inputs alone, in the form of example_inputs") from error
        if self.network.quantized:
            set_clips(self.network, found)


@dataclass
class _OnPass:
    """Tells the search of every pass with gradients; in copies of the model there is no search to tell."""

    search: Search | None

    def __call__(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        if self.search is not None and torch.is_grad_enabled():
            self.search.begin_pass((args, kwargs))

    def __reduce__(self) -> Any:
        return _OnPass, (None,)
