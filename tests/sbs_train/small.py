"""Small networks whose structure the tests need, and layers that have nothing but a cost. Nothing is trained."""

from types import SimpleNamespace

import torch

from sbs_train.contract.config import SearchConfig, TrainConfig
from sbs_train.contract.grid import make_grid
from sbs_train.contract.plan import ChannelGroup, InputSpec, ModelSpec
from sbs_train.quant.space import SearchSpace
from sbs_train.stages.limits import Limit
from sbs_train.stages.named import named_network


def small_network(mode="joint", *, model="resnet20", width=8, size=8, grid="int8", seed=0, **search):
    """A float network of that name, its quantizers on: 8 bits everywhere, clip values by rule of thumb."""
    config = TrainConfig(model=model, width=width, mode=mode, grid=grid, seed=seed, search=SearchConfig(**search))
    input = InputSpec(channels=1, height=size, width=size, mean=[0.3], std=[0.3])
    network = named_network(config, ModelSpec(name=model, arguments={"width": width, "num_classes": 10}), input)
    if network.quantized:
        first = next(iter(network.layers))
        signed_adds = [(True, index in (3, 6)) for index in range(network.adds.count)]
        network.set_grids({name: name == first for name in network.layers}, signed_adds)
        for layer in network.layers.values():
            levels = [len(grid.levels) for grid in (layer.grid_w, layer.grid_a)]
            layer.set_clips([1.5, 2.5, 3.0][-levels[0] :], [0.8, 1.2, 1.5][-levels[1] :])
    return network


def image_batches(network, count, images=8, seed=0):
    """Random (x_NCHW, y_N) for a network."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        x_NCHW = torch.randn(images, *network.inputs[0].sample, generator=generator)
        yield x_NCHW, torch.randint(network.spec.arguments["num_classes"], (images,), generator=generator)


def layer_of_cost(macs, *, kind="conv", group_in="none", group_out="none", bits=(2, 4, 8)):
    """What a search space asks of a layer."""
    return SimpleNamespace(
        macs=macs,
        kind=kind,
        group_in=group_in,
        group_out=group_out,
        grid_w=make_grid("weight", bits),
        grid_a=make_grid("unsigned", bits),
        bits_w=bits[-1],
        bits_a=bits[-1],
        weight=torch.empty(0),
    )


def group_of(name, size, *, producers=(), consumers=(), prunable=True):
    return ChannelGroup(
        id=name,
        size=size,
        kept=list(range(size)),
        prunable=prunable,
        producers=list(producers),
        consumers=list(consumers),
    )


def space_of(layers, groups=(), *, fixed=(), quantize=True, **search):
    """A search space of layers that `layer_of_cost` made, or of real ones."""
    config = SearchConfig(**{"group_size": 1, **search})
    return SearchSpace(layers, list(groups), config, fixed=set(fixed), prune=True, quantize=quantize)


def at_most(space, bops):
    """A budget in BOPs."""
    return [Limit(cost=space.bops_cost, most=bops)]


def reduced(space, target):
    """A budget as a reduction of the search's cost."""
    return [Limit(cost=space.cost, most=space.cost.reference / target)]
