"""device.json: measured times of the layers of some networks on one device, from `sbs-deploy profile-device`.

A surface holds the time of one kind of layer (its kernel, stride and feature map) over input and output channels, in
INT8 and in float; the steps of a network say which surface each of its layers lies on. The search interpolates between
the measured channels. Where a layer and the layer before it have different precisions, a conversion costs time as well.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from sbs_train.contract import rundir
from sbs_train.contract.documents import load_versioned
from sbs_train.contract.errors import SbsError
from sbs_train.contract.records import SearchDevice
from sbs_train.contract.schema import Count, Strict

SCHEMA_VERSION = 2
Milliseconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Ratio = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Channels = Annotated[list[Count], Field(min_length=1)]


class Surface(Strict):
    """Time of one kind of layer over its channels."""

    kind: str
    """conv, depthwise or linear."""
    shape: str
    """Kernel, stride and feature map, as a text for people."""
    channels_in: Channels
    """Measured numbers of input channels, ascending; the last is the dense network's number."""
    channels_out: Channels
    """Measured numbers of output channels, ascending; a single one where outputs equal inputs (depthwise)."""
    ms: list[list[Milliseconds]]
    """Milliseconds in INT8, of the layer and of what runs between it and the next layers: a row for every entry of
    `channels_in`, a column for every entry of `channels_out`."""
    float_ms: list[list[Milliseconds]]
    """The same in the backend's float type."""

    @model_validator(mode="after")
    def _check(self) -> "Surface":
        for channels in (self.channels_in, self.channels_out):
            if channels != sorted(set(channels)):
                raise ValueError("channels must ascend without repeats")
        for name, rows in (("ms", self.ms), ("float_ms", self.float_ms)):
            if [len(row) for row in rows] != [len(self.channels_out)] * len(self.channels_in):
                raise ValueError(f"{name} must have a row for every number of inputs and a column for one of outputs")
        return self


class Step(Strict):
    """One layer of a network."""

    name: str
    surface: Annotated[int, Field(ge=0)]
    """Index of the layer's surface in `DeviceModel.surfaces`."""
    follows: str | None
    """The layer before this one, whose output it reads through what runs between; null for the network's input."""
    elements: Count
    """Elements of the layer's input, of a whole batch, before pruning."""


class NetworkCost(Strict):
    """One network: its layers and its total times."""

    model: str
    input: Annotated[list[Count], Field(max_length=7)]
    """Shape of one sample of the first input: channels, height and width of an image."""
    layers: Annotated[list[Step], Field(min_length=1)]
    rest_ms: Ratio
    """Milliseconds of an inference that belong to no layer."""
    switch_us: Ratio
    """Microseconds that a layer costs besides if the layer before it has another precision."""
    switch_ns: Ratio
    """Nanoseconds that every element of the layer's input costs besides, in that case."""
    fp32_ms: Milliseconds
    """The dense float network, measured from end to end in the same rounds."""
    quantized_ms: Milliseconds
    """The dense INT8 network, measured from end to end."""


class HeldOut(Strict):
    """Errors of the predicted cost of whole networks, timed from end to end, that were not used for the surfaces."""

    networks: Annotated[int, Field(ge=0)]
    median_error: Ratio
    """Median of |predicted - measured| / measured."""
    worst_error: Ratio


class DeviceModel(Strict):
    """The content of device.json."""

    schema_version: Literal[2]
    created: str
    target: str
    """The backend, as in `sbs-deploy build --backend`, with its device or provider."""
    device: str
    """The processor or GPU that executed the layers, for people."""
    precision: str
    """Precision of the quantized layers: int8."""
    threads: int | None
    batch: Count
    versions: dict[str, str]
    machine: dict[str, Any]
    surfaces: Annotated[list[Surface], Field(min_length=1)]
    networks: Annotated[list[NetworkCost], Field(min_length=1)]
    held_out: HeldOut

    @model_validator(mode="after")
    def _check(self) -> "DeviceModel":
        for network in self.networks:
            names = {step.name: place for place, step in enumerate(network.layers)}
            for place, step in enumerate(network.layers):
                if step.surface >= len(self.surfaces):
                    raise ValueError(f"networks: {network.model}: {step.name} names surface {step.surface} of none")
                if step.follows is not None and names.get(step.follows, place) >= place:
                    raise ValueError(
                        f"networks: {network.model}: {step.name} follows {step.follows}, no layer before it"
                    )
        return self

    def network_of(self, layers: dict[str, tuple[int, int]], input: tuple[int, ...]) -> NetworkCost:
        """The measured network with these `layers` (name to channels in and out) and this `input`, of one sample.

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
            f"(measured: {known}); measure it with `sbs-deploy profile-device --models MODEL --input "
            f"{','.join(map(str, input))}`"
        )


def search_device(path: Path) -> SearchDevice:
    """Read a device.json as the record that a run keeps; SbsError if the file is missing or wrong."""
    model = load_device(path)
    return SearchDevice(
        target=model.target,
        device=model.device,
        precision=model.precision,
        batch=model.batch,
        sha256=rundir.sha256_of(path),
    )


def load_device(path: Path) -> DeviceModel:
    """Read and check device.json; SbsError names the first wrong field, and the command that makes the file."""
    if not path.exists():
        raise SbsError(f"no device file at {path}; make it with `sbs-deploy profile-device --out {path}`")
    remedy = f"measure it again with `sbs-deploy profile-device --out {path}`"
    return load_versioned(path, DeviceModel, SCHEMA_VERSION, remedy)


def save_device(model: DeviceModel, path: Path) -> None:
    """Write device.json atomically."""
    rundir.write_json(path, model.model_dump())
