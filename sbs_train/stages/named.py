"""The network of a model that has a name, as the command line and a finished run have it."""

from torch import nn

from sbs_train.contract.config import TrainConfig
from sbs_train.contract.plan import InputSpec, ModelSpec, TensorSpec
from sbs_train.inputs.models import build_model, image_example
from sbs_train.inputs.rehearsal import require_logits
from sbs_train.network.network import Network, build_network


def named_network(config: TrainConfig, spec: ModelSpec, input: InputSpec) -> Network:
    """Build a classifier by its name, and its network for images of `input`.

    Raises:
        SbsError: the model is unknown, or returns no logits (N, classes); or as `build_network`.
    """
    model = build_model(spec, input.channels, config.seed, size=(input.height, input.width))
    example = image_example(input)
    network = build_network(config, model, example, spec)
    require_logits(network.model, example)
    network.inputs = [input.tensor(one.name) for one in network.inputs]
    return network


def float_model_of(network: Network) -> nn.Module:
    """The float model of a network, as its builder makes it; SbsError if the model is unknown."""
    channels, *size = network.inputs[0].sample
    return build_model(network.spec, channels, size=(size[0], size[1]))


def image_of(tensor: TensorSpec) -> InputSpec:
    """The images of a classifier's input."""
    channels, height, width = tensor.sample
    mean, std = tensor.mean or [0.0] * channels, tensor.std or [1.0] * channels
    return InputSpec(channels=channels, height=height, width=width, mean=mean, std=std)
