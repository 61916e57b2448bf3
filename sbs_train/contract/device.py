"""device.json: what one target charges for the layers of some networks, as `sbs-deploy profile-device` measured it.

A surface holds the time of one kind of layer (its kernel, stride and feature map) over input and output channels; the
steps of a network say which surface each of its layers lies on. The search interpolates between the measured channels.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from sbs_train.contract import rundir
from sbs_train.contract.documents import load_versioned
from sbs_train.contract.errors import SbsError
from sbs_train.contract.records import PaidDevice as PaidDevice
from sbs_train.contract.schema import Count, Strict

SCHEMA_VERSION = 1
COARSE_BITS = 2
"""Of an input: codes of values with a sign then fit into the 8-bit products of processors without VNNI, whose other
kernels are slower."""
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
    """Ascending; the last is that of the dense network."""
    channels_out: Channels
    """The same; a single entry for what has as many outputs as inputs."""
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


class Step(Strict):
    """One thing a network runs."""

    name: str
    """A layer of the plan, or the ONNX node of anything else."""
    surface: Annotated[int, Field(ge=0)]
    """Index into `surfaces`."""
    follows: str | None
    """For anything but a layer: the layer whose output channels it has; null if they never change."""
    split: Annotated[int, Field(ge=0)] | None = None
    """Its surface where what it writes is a shared tensor whose readers want it at different bits; null if that is the
    same."""
    coarse: Annotated[int, Field(ge=0)] | None = None
    """Its surface where its input has COARSE_BITS or fewer; null if that is the same."""


class SharedTensor(Strict):
    """A tensor with several readers. They share one quantizer if they want the same bits; a target that cannot keep it
    in integers otherwise makes it, and what made it, dearer."""

    owners: Annotated[list[str], Field(min_length=1)]
    """Layers that it comes from."""
    readers: Annotated[list[str], Field(min_length=1)]
    """Layers."""
    added: bool
    """Whether a residual addition reads it too, at 8 bits."""


class NetworkCost(Strict):
    """One network: its steps, and what it took as a whole."""

    model: str
    input: Annotated[list[Count], Field(min_length=3, max_length=3)]
    """Channels, height and width of one image."""
    layers: Annotated[list[Step], Field(min_length=1)]
    others: list[Step]
    """What runs behind each layer and belongs to none: quantizers, additions, pooling, changes of layout."""
    shared: Annotated[list[SharedTensor], Field(default_factory=list)]
    fp32_ms: Milliseconds
    """The dense float network, measured from end to end in the same session."""
    quantized_ms: Milliseconds
    """The dense quantized network, likewise."""
    scale: Milliseconds
    """What it takes over the sum of its steps, the median of its variants: what layers cost one another."""


class HeldOut(Strict):
    """How far interpolation is off at channels that were measured and not used, paid as the search pays."""

    points: Annotated[int, Field(ge=0)]
    median_error: Ratio
    """|predicted - measured| / measured of layers, by the engine's profiler."""
    p90_error: Ratio
    networks: Annotated[int, Field(ge=0)] = 0
    network_error: Ratio = 0.0
    """Median of the same over whole networks, from end to end: `scale` times the sum of their steps, against the clock.
    """


class DeviceModel(Strict):
    """The whole file."""

    schema_version: Literal[1]
    created: str
    target: str
    """As in `sbs-deploy build --backend`, with its device or provider."""
    device: str
    """What executed the layers, for people."""
    precision: str
    """Of the engine whose layers these are: int8."""
    align: Count
    """Kept channels that are a multiple of this are no dearer than the ones just below."""
    threads: int | None
    batch: Count
    versions: dict[str, str]
    machine: dict[str, Any]
    node_overhead_us: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """What the engine's profiler adds to each node, microseconds, which the surfaces are without; null if unknown."""
    surfaces: Annotated[list[Surface], Field(min_length=1)]
    networks: Annotated[list[NetworkCost], Field(min_length=1)]
    held_out: HeldOut

    @model_validator(mode="after")
    def _check(self) -> "DeviceModel":
        for network in self.networks:
            for step in (*network.layers, *network.others):
                if max(step.surface, step.split or 0, step.coarse or 0) >= len(self.surfaces):
                    raise ValueError(f"networks: {network.model}: {step.name} names surface {step.surface} of none")
            names = {step.name for step in network.layers}
            for step in network.others:
                if step.follows is not None and step.follows not in names:
                    raise ValueError(f"networks: {network.model}: {step.name} follows the unknown {step.follows}")
            for tensor in network.shared:
                for name in (*tensor.owners, *tensor.readers):
                    if name not in names:
                        raise ValueError(f"networks: {network.model}: a shared tensor names the unknown layer {name}")
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


def paid_device(path: Path) -> PaidDevice:
    """What a run takes down of a device.json; SbsError as of `load_device`."""
    model = load_device(path)
    return PaidDevice(
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
