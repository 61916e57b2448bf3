"""Layers of a model become layers that share bits, and what shares their weights follows."""

import copy
import pickle

import torch
from torch import nn

from sbs_train.quant.folding import plain_copy
from sbs_train.quant.kinds import FollowingConv2d, SBSConv2d, SBSLinear
from sbs_train.quant.swapping import swap_layers


def test_subclasses_with_a_forward_are_left_alone_unless_named():
    class Special(nn.Conv2d):
        def forward(self, x):
            return super().forward(x)

    model = nn.Sequential(Special(3, 3, 1))
    assert not swap_layers(model) and not isinstance(model[0], SBSConv2d)
    assert list(swap_layers(model, {"0"})) == ["0"] and isinstance(model[0], Special)


class Mine(nn.Linear):
    """A subclass at the top of a module, where pickle finds it."""

    extra = 3


def test_swapped_subclasses_go_into_copies_and_files():
    model = nn.Sequential(Mine(3, 2))
    swap_layers(model)
    x = torch.randn(4, 3)
    for one in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert isinstance(one[0], Mine) and isinstance(one[0], SBSLinear) and type(one[0]) is type(model[0])
        assert torch.equal(one(x), model(x))


def test_a_layer_with_the_weights_of_another_follows_it():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, stride=2, bias=False))
    model[1].weight = model[0].weight
    x = torch.randn(2, 3, 8, 8)
    expected = model(x)
    layers = swap_layers(model)
    assert list(layers) == ["0"] and isinstance(model[1], FollowingConv2d)
    assert sorted(dict(model.named_parameters())) == ["0.bias", "0.clip_a", "0.clip_w", "0.weight"]
    seen = []
    layers["0"].register_forward_pre_hook(lambda m, x: seen.append(x[0].shape[-1]))
    for one in (model, copy.deepcopy(model)):
        torch.testing.assert_close(one(x), expected)
        assert one[1].leader[0] is one[0]
    assert seen == [8, 8, 8, 8]  # every call is one of the first layer's
    plain = plain_copy(model)
    assert [type(layer) for layer in plain] == [nn.Conv2d] * 2 and plain[0].weight is plain[1].weight
    torch.testing.assert_close(plain(x), expected)
