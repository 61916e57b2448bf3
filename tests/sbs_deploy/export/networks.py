"""Small networks with random weights, quantized and masked at random: nothing is trained."""

import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sbs_train.contract.config import TrainConfig
from sbs_train.contract.plan import InputSpec, ModelSpec, Plan
from sbs_train.example import specs_of
from sbs_train.inputs.models import image_example
from sbs_train.network.channels import topology_of
from sbs_train.network.network import Network
from sbs_train.quant.adds import ResidualAdds, additions_of
from sbs_train.quant.folding import paired_batchnorms, plain_copy
from sbs_train.quant.interception import Place, intercept_additions
from sbs_train.quant.swapping import swap_layers
from sbs_train.stages.plans import apply_clips, apply_plan, plan_of_network

INPUT, OUTPUT = "input", "logits"

SMALL_INPUT = InputSpec(channels=3, height=12, width=12, mean=[0.5] * 3, std=[0.25] * 3)
SMALL_EXAMPLE = image_example(SMALL_INPUT)
NAMES = [INPUT], [OUTPUT]


class InvertedResidual(nn.Module):
    """Expand, depthwise, project; the shortcut where shapes allow. ReLU6 works in place, as in torchvision."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        hidden = 3 * channels_in
        self.expand = nn.Sequential(
            nn.Conv2d(channels_in, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6(inplace=True)
        )
        self.depthwise = nn.Sequential(
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=True),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(inplace=True),
        )
        self.project = nn.Sequential(nn.Conv2d(hidden, channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.shortcut = stride == 1 and channels_in == channels

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y: Tensor = self.project(self.depthwise(self.expand(x_NCHW)))
        return x_NCHW + y if self.shortcut else y


class Head(nn.Module):
    """A classifier with a layer between, and BatchNorm1d."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.fc1, self.bn1, self.fc2 = nn.Linear(channels, 16), nn.BatchNorm1d(16), nn.Linear(16, classes)

    def forward(self, x_NC: Tensor) -> Tensor:
        logits: Tensor = self.fc2(F.relu(self.bn1(self.fc1(x_NC))))
        return logits


class MobileNet(nn.Module):
    """A MobileNetV2 of three blocks with a larger head."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(inplace=True))
        self.blocks = nn.Sequential(InvertedResidual(8, 8, 1), InvertedResidual(8, 12, 2), InvertedResidual(12, 12, 1))
        self.head = Head(12, classes)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(self.stem(x_NCHW)).mean((2, 3)))
        return logits


def random_network(
    model: nn.Module,
    seed: int,
    *,
    bits: tuple[int, ...] = (2, 4, 8),
    config: TrainConfig,
    input: InputSpec,
    trained_on: tuple[Tensor, Tensor] | None = None,
) -> tuple[Network, Plan]:
    """A network with random bits, clips and masks, weights and BatchNorm statistics (negative and zero γ included).

    With `trained_on` (images, labels) it is trained for seconds and loses fewer channels: its answers then differ from
    image to image by more than rounding does.
    """
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    _randomise(model, generator)
    if trained_on is not None:
        _train(model, *trained_on, generator)
    example = image_example(input)
    # As `structure_of` finds them, without its trials: they take longer than all the rest.
    topology = topology_of(model.eval(), example)
    batchnorms = paired_batchnorms(model, example)
    swapped = swap_layers(model, set(topology.quantizable))
    layers = {name: swapped[name] for name in topology.quantizable}
    for name in layers:
        shape = topology.layers[name]
        layers[name].macs, layers[name].group_in, layers[name].group_out = shape.macs, shape.group_in, shape.group_out
    classes = list(layers.values())[-1].weight.shape[0]
    spec = ModelSpec(name=config.model, arguments={"width": config.width, "num_classes": classes})
    additions = [] if config.mode == "prune" else additions_of(copy.deepcopy(model), example)
    inputs, outputs = specs_of(model, example)
    adds = ResidualAdds(additions)
    adds.install(model)
    network = Network(
        model=model,
        layers=layers,
        adds=adds,
        topology=topology,
        batchnorms=batchnorms,
        spec=spec,
        example=example,
        inputs=[input.tensor(one.name) for one in inputs],
        outputs=outputs,
        additions=additions,
        kept={},
        config=config,
    )
    if network.quantized:
        network.set_grids(_signs(network, generator), [(True, bool(rng.integers(2))) for _ in additions])
        adds.clip_lhs.data.uniform_(2, 4, generator=generator)
        adds.clip_rhs.data.uniform_(2, 4, generator=generator)
        for layer in layers.values():
            layer.set_bits(int(rng.choice(bits)), int(rng.choice(bits)))
            layer.clip_w.data.fill_(rng.uniform(2, 3))
            layer.clip_a.data.fill_(rng.uniform(2, 4))
        if trained_on is not None:
            _estimate_clips(network, trained_on[0])

    def fewest(size: int) -> int:
        return 1 if trained_on is None else size - 1

    kept = {
        group.id: sorted(
            rng.choice(group.size, rng.integers(fewest(group.size), group.size + 1), replace=False).tolist()
        )
        for group in topology.groups
        if group.prunable
    }
    plan = plan_of_network(network, kept)
    apply_plan(network, plan)
    apply_clips(network, plan)
    model.eval()
    return network, plan


@torch.no_grad()
def _randomise(model: nn.Module, generator: torch.Generator) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            shape = module.running_mean.shape
            gamma = 0.5 + torch.rand(shape, generator=generator)
            gamma *= torch.where(torch.rand(shape, generator=generator) < 0.3, -1.0, 1.0)
            gamma[torch.rand(shape, generator=generator) < 0.05] = 0
            module.weight.copy_(gamma)
            module.bias.copy_(0.5 * torch.randn(shape, generator=generator))
            module.running_mean.copy_(0.5 * torch.randn(shape, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(shape, generator=generator))
        elif isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.copy_(
                torch.randn(module.weight.shape, generator=generator) * module.weight[0].numel() ** -0.5
            )
            if module.bias is not None:
                module.bias.copy_(0.2 * torch.randn(module.bias.shape, generator=generator))


def _train(model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator, steps: int = 60) -> None:
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    model.train()
    for _ in range(steps):
        batch = torch.randint(len(labels), (128,), generator=generator)
        loss = F.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    model.eval()


@torch.no_grad()
def _signs(network: Network, generator: torch.Generator) -> dict[str, bool]:
    """Which layers read negative values, seen on noise."""
    signed: dict[str, bool] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda m, x, n=name: signed.update({n: bool((x[0] < 0).any())}))
        for name, layer in network.layers.items()
    ]
    network.model(torch.randn(4, *network.inputs[0].sample, generator=generator))
    for hook in hooks:
        hook.remove()
    return signed


@torch.no_grad()
def _estimate_clips(network: Network, images: Tensor) -> None:
    """Clip values that cut nothing off, seen on the float network."""

    def watch_add(place: Place, lhs: Tensor, rhs: Tensor) -> tuple[Tensor, Tensor]:
        index = network.adds.places.index(place)
        network.adds.clip_lhs[index], network.adds.clip_rhs[index] = lhs.abs().max(), rhs.abs().max()
        return lhs, rhs

    def watch_input(name: str, x: Tensor) -> None:
        network.layers[name].clip_a.fill_(float(x.abs().max()))

    plain = plain_copy(network.model)
    for name in network.layers:
        plain.get_submodule(name).register_forward_pre_hook(lambda m, x, n=name: watch_input(n, x[0]))
    with intercept_additions(plain, watch_add, network.adds.places):
        plain(images)
