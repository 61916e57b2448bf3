"""device.json: what layers of some networks cost on one target, as `sbs-deploy profile-device` measured them.

A surface holds the time of one kind of layer (its kernel, stride and feature map) over input and output channels; the
steps of a network say which surface each of its layers lies on. The search interpolates between the measured channels.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from sbs_train.contract import rundir
from sbs_train.contract.documents import load_versioned
from sbs_train.contract.errors import SbsError
from sbs_train.contract.records import SearchDevice
from sbs_train.contract.schema import Count, Strict

SCHEMA_VERSION = 1
Milliseconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Ratio = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Channels = Annotated[list[Count], Field(min_length=1)]


class Surface(Strict):
    """Time of one kind of layer over its channels."""

    kind: str
    """conv, depthwise or linear; or the ONNX operator of anything else that takes time."""
    shape: str
    """The rest of what decides its time, for people: kernel, stride, feature map, precision."""
    channels_in: Channels
    """Numbers of input channels that were measured, ascending; the last is that of the dense network."""
    channels_out: Channels
    """Numbers of output channels likewise; a single one for what has as many outputs as inputs."""
    ms: list[list[Milliseconds]]
    """A row for every entry of `channels_in`, a column for every entry of `channels_out`."""

    @model_validator(mode="after")
    def _check(self) -> "Surface":
        for channels in (self.channels_in, self.channels_out):
            if channels != sorted(set(channels)):
                raise ValueError("channels must ascend without repeats")
        if [len(row) for row in self.ms] != [len(self.channels_out)] * len(self.channels_in):
            raise ValueError("ms must have a row for every number of inputs and a column for every number of outputs")
        return self


class Step(Strict, extra="ignore"):
    """One thing that a network runs. Further keys, of files of earlier versions, are ignored."""

    name: str
    """A layer of the plan, or the ONNX node of anything else."""
    surface: Annotated[int, Field(ge=0)]
    """Index of the step's surface in `DeviceModel.surfaces`."""
    follows: str | None
    """For anything but a layer: the layer whose output channels it has; null if they never change."""


class NetworkCost(Strict, extra="ignore"):
    """One network: its steps, and what it took as a whole. Further keys, of files of earlier versions, are ignored."""

    model: str
    input: Annotated[list[Count], Field(min_length=3, max_length=3)]
    """Channels, height and width of one image."""
    layers: Annotated[list[Step], Field(min_length=1)]
    others: list[Step]
    """What runs behind each layer and belongs to none: quantizers, additions, pooling, changes of layout."""
    fp32_ms: Milliseconds
    """The dense float network, measured from end to end in the same session."""
    quantized_ms: Milliseconds
    """The dense quantized network, measured from end to end."""
    scale: Milliseconds
    """Time of the network over the sum of its steps, the median of its variants: what layers cost one another."""


class HeldOut(Strict):
    """How far the cost that a search goes by is off at channels that were measured and not used."""

    points: Annotated[int, Field(ge=0)]
    median_error: Ratio
    """|predicted - measured| / measured of layers, by the engine's profiler."""
    p90_error: Ratio
    networks: Annotated[int, Field(ge=0)] = 0
    network_error: Ratio = 0.0
    """Median over whole networks, from end to end: `scale` times the sum of their steps, against the clock."""


class DeviceModel(Strict):
    """The whole of device.json."""

    schema_version: Literal[1]
    created: str
    target: str
    """The backend, as in `sbs-deploy build --backend`, with its device or provider."""
    device: str
    """The processor or GPU that executed the layers, for people."""
    precision: str
    """Precision of the engine whose layers these are: int8."""
    align: Count
    """Kept channels that are a multiple of this are no dearer than the ones just below."""
    threads: int | None
    batch: Count
    versions: dict[str, str]
    machine: dict[str, Any]
    node_overhead_us: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """Microseconds that the engine's profiler adds to each node, which the surfaces are without; null if unknown."""
    surfaces: Annotated[list[Surface], Field(min_length=1)]
    networks: Annotated[list[NetworkCost], Field(min_length=1)]
    held_out: HeldOut

    @model_validator(mode="after")
    def _check(self) -> "DeviceModel":
        for network in self.networks:
            for step in (*network.layers, *network.others):
                if step.surface >= len(self.surfaces):
                    raise ValueError(f"networks: {network.model}: {step.name} names surface {step.surface} of none")
            names = {step.name for step in network.layers}
            for step in network.others:
                if step.follows is not None and step.follows not in names:
                    raise ValueError(f"networks: {network.model}: {step.name} follows the unknown {step.follows}")
        return self

    def network_of(self, layers: dict[str, tuple[int, int]], input: tuple[int, int, int]) -> NetworkCost:
        """The measured network with these layers: (inputs, outputs) of each by name; and this input (C, H, W).

        Raises:
            SbsError: no such network was measured.
        """
        for network in self.networks:
            measured = {
                step.name: (self.surfaces[step.surface].channels_in[-1], self.surfaces[step.surface].channels_out[-1])
                for step in network.layers
            }
            if tuple(network.input) == input and measured == layers:
                return network
        known = ", ".join(f"{network.model} at {'x'.join(map(str, network.input))}" for network in self.networks)
        raise SbsError(
            f"no network with these layers and an input of {'x'.join(map(str, input))} was measured on {self.device} "
            f"(measured: {known}); measure it with `sbs-deploy profile-device --models MODEL`"
        )


def search_device(path: Path) -> SearchDevice:
    """The record of a device.json; SbsError as of `load_device`."""
    model = load_device(path)
    return SearchDevice(
        target=model.target,
        device=model.device,
        precision=model.precision,
        align=model.align,
        batch=model.batch,
        sha256=rundir.sha256_of(path),
    )


def load_device(path: Path) -> DeviceModel:
    """Read and check device.json; SbsError names the first wrong field, and the command that makes the file."""
    if not path.exists():
        raise SbsError(f"no device file at {path}; make it with `sbs-deploy profile-device --out {path}`")
    return load_versioned(path, DeviceModel, SCHEMA_VERSION, "make it again with `sbs-deploy profile-device`")


def save_device(model: DeviceModel, path: Path) -> None:
    """Write device.json atomically."""
    rundir.write_json(path, model.model_dump())
