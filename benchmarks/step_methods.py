"""The methods that search_step.py compares: float training, plain QAT and our searches.

All of them leave residual additions in float; the quantized ones have 8 bits in the first and the last layer.
"""

import torch.nn.functional as F
from step_measure import Method, Setting, inputs_of, method
from torch import Tensor, nn

from sbs_train import Search, SearchConfig
from sbs_train.contract.config import TrainConfig
from sbs_train.contract.plan import InputSpec, ModelSpec
from sbs_train.inputs.models import build_model
from sbs_train.network.network import Network, fastest_layout
from sbs_train.quant.quantizer import compiled_kernels
from sbs_train.stages.limits import Limit
from sbs_train.stages.loss_rule import DECIDE_EVERY, WARM_UP, LossRule
from sbs_train.stages.named import named_network
from sbs_train.stages.rule import GateRule
from sbs_train.stages.search import search_space
from sbs_train.stages.threshold_rule import ThresholdRule

CLIP_SIGMAS = 3.0
"""Clip values of weights, in standard deviations."""
CLIP_PART = 0.8
"""Clip values of activations, as a part of the largest magnitude: some values saturate, as in training."""
TARGET = 60.0
"""Reduction of BOPs that the searches are to reach."""
STEPS = 10_000
"""Length of the search that the rules believe in."""
LATER = WARM_UP + 2
"""The first of the timed steps of a search: it has decided before, and decides in none of the timed steps."""


def fp32(setting: Setting, *, compiled: bool = False) -> Method:
    """Float training."""
    model = float_model(setting)
    if compiled:
        model.compile()
    note = "torch.compile of the whole network" if compiled else ""
    return method("FP32", "32/32", note, model, setting)


def plain_qat(setting: Setting, *, compiled: bool = False) -> Method:
    """Quantization-aware training with our quantizer: frozen gates and learned clip values, as in fine-tuning."""
    network = quantized(setting, compiled)
    for name, layer in network.layers.items():
        if name not in network.topology.fixed:
            layer.set_bits(4, 4)
    result = method("plain QAT", "4/4", "learned clip values; our quantizer, gates frozen", network.model, setting)
    result.finish = network.clamp_clips
    return result


def sbs(setting: Setting, *, compiled: bool = False) -> Method:
    """The search step as sbs-train runs it: gates by the loss they save, bits and filters."""
    network = quantized(setting, compiled)
    space = search_space(network)
    rule = LossRule(network, space, [Limit(cost=space.cost, most=space.cost.reference / TARGET)], STEPS)
    note = f"gates by the loss they save; the decision every {DECIDE_EVERY} steps is shared out among them"
    result = searching("SBS search", note, network, rule, setting)
    result.now_and_then, result.every = lambda: rule.before(WARM_UP), DECIDE_EVERY
    return result


def in_loop(setting: Setting, *, compiled: bool = False) -> Method:
    """The search step of `sbs_train.Search`, as somebody's own loop takes it."""
    x_NCHW, _ = setting.data()
    model = float_model(setting)
    options = SearchConfig(quantize_residual=False)
    search = Search(model, x_NCHW[:2], target=f"{TARGET}x", steps=STEPS, calibration=[x_NCHW], options=options)
    if compiled:
        for layer in search.network.layers.values():
            layer.kernels = compiled_kernels()

    def finish() -> None:
        search._step = LATER  # as above: decisions are timed by themselves
        search.step()

    note = "sbs_train.Search in a plain loop; decisions as above"
    result = method("Search in a loop", "2, 4, 8 / 2, 4, 8", note, model, setting)
    result.finish = finish
    result.now_and_then, result.every = lambda: search._rule.before(WARM_UP), DECIDE_EVERY
    return result


def thresholds(setting: Setting, *, compiled: bool = False) -> Method:
    """The search step of the paper: learned thresholds (`--search.metric error`)."""
    network = quantized(setting, compiled)
    rule = ThresholdRule(network, search_space(network), TARGET, STEPS)
    return searching("SBS search, thresholds", "learned thresholds, as in the paper", network, rule, setting)


def searching(name: str, note: str, network: Network, rule: GateRule, setting: Setting) -> Method:
    """A search by `rule`: `train_step` of stages.search, its weights' optimizer left to `Method.step`."""
    x_NCHW, y_N = setting.data()

    def loss(index: int) -> Tensor:
        penalty = rule.before(LATER + index)
        cross_entropy = F.cross_entropy(network.model(x_NCHW), y_N)
        return cross_entropy if penalty is None else cross_entropy + penalty

    def finish() -> None:
        network.clamp_clips()
        rule.after(LATER, setting.batch)

    result = method(name, "2, 4, 8 / 2, 4, 8", note, network.model, setting, loss)
    result.finish = finish
    return result


def float_model(setting: Setting) -> nn.Module:
    """The float network, on the device, in the memory layout that the quantized networks have."""
    spec, image = specs(setting)
    layout = fastest_layout(named_network(TrainConfig(), spec, image), setting.device)
    return build_model(spec, 3).train().to(setting.device).to(memory_format=layout)


def quantized(setting: Setting, compiled: bool) -> Network:
    """The network with our quantizers, on the device, its clip values set."""
    config = TrainConfig(
        model=setting.model,
        width=setting.width,
        compile=compiled,
        search=SearchConfig(quantize_residual=False),
    )
    network = named_network(config, *specs(setting))
    network.model.train().to(setting.device).to(memory_format=fastest_layout(network, setting.device))
    found = inputs_of(network.model, dict(network.layers), setting.data()[0])
    network.set_grids({name: signed for name, (signed, _) in found.items()})
    for name, layer in network.layers.items():
        nn.init.constant_(layer.clip_w, CLIP_SIGMAS)
        nn.init.constant_(layer.clip_a, CLIP_PART * found[name][1])
    return network


def specs(setting: Setting) -> tuple[ModelSpec, InputSpec]:
    """The network and its input, as sbs_train names them."""
    model = ModelSpec(name=setting.model, arguments={"width": setting.width, "num_classes": setting.classes})
    return model, InputSpec(channels=3, height=setting.image, width=setting.image, mean=[0.0] * 3, std=[1.0] * 3)
