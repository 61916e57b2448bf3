"""Clip values stay positive, in a model and in its copies."""

import copy

import torch
from torch import nn

from sbs_train.quant.adds import ResidualAdds
from sbs_train.quant.clamping import Clamping, uninstall_clamping
from sbs_train.quant.layers import CLIP_MIN
from sbs_train.quant.scale import FACTOR_MIN
from sbs_train.quant.swapping import swap_layers


def clamped():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    layers = swap_layers(model)
    model.register_forward_pre_hook(Clamping(layers.values(), ResidualAdds([])))
    return model


def spoil(model):
    with torch.no_grad():
        for index in (0, 2):
            model[index].clip_w.fill_(-1)
            model[index].clip_a.fill_(-1)


def clips(model):
    return [clip.item() for index in (0, 2) for clip in (model[index].clip_w, model[index].clip_a)]


def test_passes_with_gradients_raise_clip_values():
    model, x = clamped(), torch.zeros(1, 4)
    spoil(model)
    with torch.no_grad():
        model(x)
    assert clips(model) == [-1] * 4
    model(x)
    assert clips(model) == [float(torch.tensor(least)) for least in (FACTOR_MIN, CLIP_MIN) * 2]


def test_a_copy_has_its_own():
    model, x = clamped(), torch.zeros(1, 4)
    copied = copy.deepcopy(model)
    spoil(model), spoil(copied)
    copied(x)
    assert min(clips(copied)) > 0 and clips(model) == [-1] * 4
    uninstall_clamping(model)
    model(x)
    assert clips(model) == [-1] * 4 and not model._forward_pre_hooks
