"""Models by name, as the command line and a finished run have them."""

import inspect
from collections.abc import Sequence

import torch
from torch import nn

from sbs_train.contract.config import TrainConfig
from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import InputSpec, ModelSpec, Plan
from sbs_train.example import Example
from sbs_train.inputs.models import BUILDERS, build_model, image_example
from sbs_train.network.network import Network, build_network
from sbs_train.tasks.feed import Feed
from sbs_train.tasks.protocol import Task

IMAGE_AXES = 3


def spec_of(config: TrainConfig, task: Task) -> ModelSpec:
    """What a plan calls the model of a run, and what the model's builder gets."""
    width = {"width": config.width} if config.model in BUILDERS else {}
    return ModelSpec(name=config.model, arguments={**width, **getattr(task, "arguments", {})})


def model_for(config: TrainConfig, task: Task) -> nn.Module:
    """Build the model that the settings name, for a task; SbsError as `build_model`."""
    return model_of(spec_of(config, task), example_of_task(task).tensors[0].shape[1:], config.seed)


def example_of_task(task: Task) -> Example:
    """Two samples of what the network gets of a batch."""
    return Example.of(task.inputs(Feed(task=task).example(2))).first(2)


def model_of(spec: ModelSpec, sample: Sequence[int], seed: int = 0) -> nn.Module:
    """Build the model that a plan or the settings name; SbsError as `build_model`.

    Args:
        sample: shape of one sample of the first input; channels, height and width of an image.
    """
    if len(sample) != IMAGE_AXES:
        return build_model(spec, 0, seed)
    channels, height, width = sample
    return build_model(spec, channels, seed, size=(height, width))


def network_of_plan(config: TrainConfig, plan: Plan) -> Network:
    """The network of a plan, whose model is built by its name, with the plan's names of inputs and outputs.

    Raises:
        SbsError: an input has an axis without a size, or is a part of a nested argument; or as `build_model` and
            `build_network`.
    """
    nested = [one.name for one in plan.inputs if "." in one.name]
    if nested:
        raise SbsError(f"the input {nested[0]} is part of a nested argument; restore this model in your own code")
    model = model_of(plan.model, plan.inputs[0].sample, config.seed)
    zeros = {one.name: torch.zeros(2, *one.sample, dtype=getattr(torch, one.dtype)) for one in plan.inputs}
    # The input of a plan of version 1 has a name of its own, and is the only one.
    named = zeros.keys() <= inspect.signature(model.forward).parameters.keys()
    network = build_network(config, model, Example.of(zeros if named else tuple(zeros.values())), plan.model)
    network.inputs, network.outputs = plan.inputs, plan.outputs
    return network


def network_of(config: TrainConfig, task: Task, model: nn.Module) -> Network:
    """The network of a float model for a task, which may say how images are normalised; errors of `build_network`."""
    example = example_of_task(task).to(next(model.parameters()).device)
    network = build_network(config, model, example, spec_of(config, task))
    image = getattr(task, "input", None)
    if image is not None:
        network.inputs = [image.tensor(one.name) for one in network.inputs]
    return network


def named_network(config: TrainConfig, spec: ModelSpec, input: InputSpec) -> Network:
    """The network of a model by its name for images of `input`; errors of `build_model` and `build_network`."""
    model = model_of(spec, (input.channels, input.height, input.width), config.seed)
    network = build_network(config, model, image_example(input), spec)
    network.inputs = [input.tensor(one.name) for one in network.inputs]
    return network
