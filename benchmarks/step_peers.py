"""Quantization-aware training by other tools, for search_step.py. requirements-peers.txt says how to install them."""

import os
import warnings
from importlib import metadata
from typing import Any

import torch
from step_method import Method, Missing, Setting, inputs_of, method
from step_sbs import float_model, layer_macs
from torch import nn


def brevitas(setting: Setting) -> Method:
    """Brevitas: learned scales of weights and activations, 4 bits; the first and the last layer 8."""
    qnn, scaled = _import("brevitas", "brevitas.nn", "brevitas.quant.scaled_int")
    kinds = _import("brevitas", "brevitas.inject.enum")[0]

    class LearnedWeight(scaled.Int8WeightPerTensorFloat):  # type: ignore[misc, name-defined]
        scaling_impl_type = kinds.ScalingImplType.PARAMETER_FROM_STATS

    model = float_model(setting)
    names = list(layer_macs(setting))
    layers = {name: model.get_submodule(name) for name in names}
    found = inputs_of(model, layers, setting.data()[0])
    for name, layer in layers.items():
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        bits = 8 if name in (names[0], names[-1]) else 4
        signed = found[name][0]
        options: dict[str, Any] = {
            "bias": layer.bias is not None,
            "weight_quant": LearnedWeight,
            "weight_bit_width": bits,
            "input_quant": scaled.Int8ActPerTensorFloat if signed else scaled.Uint8ActPerTensorFloat,
            "input_bit_width": bits,
            # Scales come from a percentile for this many steps (300 unless given), which costs more than the rest.
            "input_collect_stats_steps": 1,
        }
        swapped = _brevitas_layer(qnn, layer, options)
        swapped.load_state_dict(layer.state_dict(), strict=False)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, swapped.to(setting.device))
    note = f"Brevitas {metadata.version('brevitas')}, learned scales" + _jit_note()
    return method("Brevitas QAT", "4/4", note, model, setting)


def modelopt(setting: Setting) -> Method:
    """NVIDIA ModelOpt: INT8 with the ranges of its calibration, weights per channel."""
    (quantization,) = _import("nvidia-modelopt", "modelopt.torch.quantization")
    model = float_model(setting)
    x_NCHW = setting.data()[0]

    def calibrate(network: nn.Module) -> None:
        # In training mode, as it will run: a fresh BatchNorm's running statistics would give ranges that nothing fits.
        with torch.no_grad():
            network.train()(x_NCHW)

    model = quantization.quantize(model, quantization.INT8_DEFAULT_CFG, calibrate)
    version = metadata.version("nvidia-modelopt")
    note = f"ModelOpt {version}, INT8_DEFAULT_CFG: fixed ranges, weights per channel, backward straight through"
    return method("ModelOpt QAT", "8/8", note, model.train(), setting)


def _brevitas_layer(qnn: Any, layer: nn.Conv2d | nn.Linear, options: dict[str, Any]) -> nn.Module:
    if isinstance(layer, nn.Linear):
        linear: nn.Module = qnn.QuantLinear(layer.in_features, layer.out_features, **options)
        return linear
    convolution: nn.Module = qnn.QuantConv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
        **options,
    )
    return convolution


def _jit_note() -> str:
    return ", BREVITAS_JIT=1" if os.environ.get("BREVITAS_JIT") == "1" else ""


def _import(distribution: str, *modules: str) -> list[Any]:
    """The modules of a peer; Missing says why there are none."""
    import importlib

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [importlib.import_module(module) for module in modules]
    except ImportError as error:
        raise Missing(f"not measured: {distribution} is not installed ({error}); see requirements-peers.txt") from error
