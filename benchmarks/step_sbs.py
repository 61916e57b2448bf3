"""SBS and plain QAT for search_step.py: the one file of the comparison that knows sbs_train.

All rows of this file quantize convolutions and linear layers and leave residual additions in float, as the other tools
do. The first and the last layer have 8 bits in every row.
"""

from typing import Any

import torch
import torch.nn.functional as F
from step_method import Method, Setting, inputs_of, method
from torch import Tensor, nn

from sbs_train.contract.config import SearchConfig, TrainConfig
from sbs_train.contract.grid import activation_role, make_grid
from sbs_train.contract.plan import InputSpec, ModelSpec
from sbs_train.inputs.models import build_model
from sbs_train.quant.layers import SBSConv2d, SBSLayer
from sbs_train.quant.quantizer import EAGER, Kernels, compiled_kernels, level_table, quantize_decomposed
from sbs_train.stages.allocate import Limit
from sbs_train.stages.loss_rule import DECIDE_EVERY, WARM_UP, LossRule
from sbs_train.stages.plans import Network, build_network, fastest_layout
from sbs_train.stages.rule import Rule
from sbs_train.stages.search import search_space
from sbs_train.stages.threshold_rule import ThresholdRule

CLIP_SIGMAS = 3.0
CLIP_PART = 0.8
"""Activation clip values as a part of the largest magnitude: some values saturate, as in training."""
TARGET = 60.0
"""Reduction of BOPs that the searches are to reach."""
STEPS = 10_000
"""Length of the search that the rules believe in."""
LATER = WARM_UP + 2
"""The timed steps of a search: it has decided before, and decides in neither of them."""


def float_model(setting: Setting) -> nn.Module:
    """The float network in the memory layout that all methods use."""
    return _on_device(build_model(_spec(setting), 3), _layout(setting), setting)


def fp32(setting: Setting, *, compiled: bool = False) -> Method:
    """Float training."""
    model = float_model(setting)
    note = "torch.compile of the whole network" if compiled else ""
    return method("FP32", "32/32", note, torch.compile(model) if compiled else model, setting)  # type: ignore[arg-type]


def plain_qat(setting: Setting, *, compiled: bool = False) -> Method:
    """Frozen gates and learned clip values, as in fine-tuning."""
    network = _network(setting, compiled)
    for name, layer in network.layers.items():
        if name not in network.topology.fixed:
            layer.set_bits(4, 4)
    result = method("plain QAT", "4/4", "learned clip values; our quantizer, gates frozen", network.model, setting)
    result.finish = network.clamp_clips
    return result


def sbs(setting: Setting, *, compiled: bool = False) -> Method:
    """The search step as sbs-train runs it: gates by the loss they save, bits and filters."""
    network = _network(setting, compiled)
    space = search_space(network)
    rule = LossRule(network, space, [Limit(cost=space.cost, most=space.cost.reference / TARGET)], STEPS)
    note = f"gates by the loss they save; the decision every {DECIDE_EVERY} steps is shared out among them"
    result = _searching("SBS search", note, network, rule, setting)
    result.now_and_then, result.every = lambda: rule.before(WARM_UP), DECIDE_EVERY
    return result


def thresholds(setting: Setting, *, compiled: bool = False) -> Method:
    """The search step of the paper: learned thresholds (`--search.metric error`)."""
    network = _network(setting, compiled)
    rule = ThresholdRule(network, search_space(network), TARGET, STEPS)
    return _searching("SBS search, thresholds", "learned thresholds, as in the paper", network, rule, setting)


def naive(setting: Setting) -> Method:
    """The paper's search, its quantizers written as the nested sum and differentiated by autograd."""
    network = _network(setting, compiled=False)
    for layer in network.layers.values():
        layer.forward = _naive_forward(layer)
    rule = ThresholdRule(network, search_space(network), TARGET, STEPS)
    # What thresholds are compared with is gathered in the forward pass that was replaced: this row comes out cheaper.
    note = "as in the paper, the nested sum differentiated by autograd; without the gates' metrics"
    return _searching("SBS, naive decomposition", note, network, rule, setting)


def level_rows(bits: int, *, signed: bool) -> tuple[Tensor, Tensor]:
    """Rows of the quantizer's table (`Level.affine()`) of weights and activations at one bitwidth."""
    return (
        level_table(make_grid("weight", (bits,)))[0],
        level_table(make_grid(activation_role(signed), (bits,)))[0],
    )


def kernels(*, compiled: bool) -> Kernels:
    """The passes of our quantizer, for methods that are to differ from plain QAT in nothing but their structure."""
    return compiled_kernels() if compiled else EAGER


def layer_macs(setting: Setting) -> dict[str, int]:
    """MACs for one image, by layer, in the order in which they run."""
    return {name: layer.macs for name, layer in _network(setting, compiled=False).layers.items()}


def _searching(name: str, note: str, network: Network, rule: Rule, setting: Setting) -> Method:
    # `train_step` of stages.search, its weights' optimizer left to `Method.step`.
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


def _network(setting: Setting, compiled: bool) -> Network:
    config = TrainConfig(
        model=setting.model,
        width=setting.width,
        compile=compiled,
        search=SearchConfig(quantize_residual=False),
    )
    network = build_network(config, _spec(setting), _image(setting))
    _on_device(network.model, fastest_layout(network, setting.device), setting)
    layers: dict[str, nn.Module] = dict(network.layers)
    found = inputs_of(network.model, layers, setting.data()[0])
    network.set_grids({name: signed for name, (signed, _) in found.items()})
    for name, layer in network.layers.items():
        nn.init.constant_(layer.clip_w, CLIP_SIGMAS)
        nn.init.constant_(layer.clip_a, CLIP_PART * found[name][1])
    return network


def _naive_forward(layer: SBSLayer) -> Any:
    def forward(x: Tensor) -> Tensor:
        gates_a, gates_w = layer.gates_a, layer.gates_w
        assert gates_a is not None and gates_w is not None
        x = quantize_decomposed(x, layer.clip_a * layer.ratio_a, gates_a, layer.table_a)
        clip_K = layer.clip_w * layer.weight.detach().std() * layer.ratio_w
        weight = quantize_decomposed(layer.centred_weight(), clip_K, gates_w, layer.table_w)
        if layer.mask_in is not None and layer.kind != "depthwise":
            weight = weight * layer.mask_in.view(1, -1, *[1] * (weight.dim() - 2))
        if isinstance(layer, SBSConv2d):
            y_NCHW: Tensor = layer._conv_forward(x, weight, layer.bias)
            return y_NCHW
        return F.linear(x, weight, layer.bias)  # type: ignore[arg-type]

    return forward


def _on_device(model: nn.Module, layout: torch.memory_format, setting: Setting) -> nn.Module:
    return model.train().to(setting.device).to(memory_format=layout)


def _layout(setting: Setting) -> torch.memory_format:
    """What `fastest_layout` gives the quantized networks: the float one gets no worse."""
    network = build_network(TrainConfig(), _spec(setting), _image(setting))
    return fastest_layout(network, setting.device)


def _spec(setting: Setting) -> ModelSpec:
    return ModelSpec(name=setting.model, width=setting.width, num_classes=setting.classes)


def _image(setting: Setting) -> InputSpec:
    return InputSpec(channels=3, height=setting.image, width=setting.image, mean=[0.0] * 3, std=[1.0] * 3)
