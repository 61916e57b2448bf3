"""device.json: measured times of the layers of some networks on one device, from `sbs-deploy profile-device`.

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
    """Kernel, stride, feature map and precision, as a text for people."""
    channels_in: Channels
    """Measured numbers of input channels, ascending; the last is the dense network's number."""
    channels_out: Channels
    """Measured numbers of output channels, ascending; a single one where outputs equal inputs (depthwise)."""
    ms: list[list[Milliseconds]]
    """Milliseconds: a row for every entry of `channels_in`, a column for every entry of `channels_out`."""

    @model_validator(mode="after")
    def _check(self) -> "Surface":
        for channels in (self.channels_in, self.channels_out):
            if channels != sorted(set(channels)):
                raise ValueError("channels must ascend without repeats")
        if [len(row) for row in self.ms] != [len(self.channels_out)] * len(self.channels_in):
            raise ValueError("ms must have a row for every number of inputs and a column for every number of outputs")
        return self


class Step(Strict, extra="ignore"):
    """One layer or ONNX node that a network runs. Unknown keys, from files of earlier versions, are ignored."""

    name: str
    """A layer of the plan, or the ONNX node of anything else."""
    surface: Annotated[int, Field(ge=0)]
    """Index of the step's surface in `DeviceModel.surfaces`."""
    follows: str | None
    """For nodes that are no layer: the layer whose output channels the node has; null if these never change."""


class NetworkCost(Strict, extra="ignore"):
    """One network: its steps and its total times. Unknown keys, from files of earlier versions, are ignored."""

    model: str
    input: Annotated[list[Count], Field(min_length=3, max_length=3)]
    """Channels, height and width of one image."""
    layers: Annotated[list[Step], Field(min_length=1)]
    others: list[Step]
    """Steps that are no layer of the plan: quantizers, additions, pooling, changes of layout."""
    fp32_ms: Milliseconds
    """The dense float network, measured from end to end in the same session."""
    quantized_ms: Milliseconds
    """The dense quantized network, measured from end to end."""
    scale: Milliseconds
    """Time of the whole network over the sum of its steps; the median over its variants."""


class HeldOut(Strict):
    """Errors of the predicted cost at channels that were measured but not used for the surfaces."""

    points: Annotated[int, Field(ge=0)]
    median_error: Ratio
    """Median of |predicted - measured| / measured over layers, times from the engine's profiler."""
    p90_error: Ratio
    networks: Annotated[int, Field(ge=0)] = 0
    network_error: Ratio = 0.0
    """Median of |predicted - measured| / measured over whole networks, timed from end to end."""


class DeviceModel(Strict):
    """The content of device.json."""

    schema_version: Literal[1]
    created: str
    target: str
    """The backend, as in `sbs-deploy build --backend`, with its device or provider."""
    device: str
    """The processor or GPU that executed the layers, for people."""
    precision: str
    """Precision of the engine whose layers these are: int8."""
    align: Count
    """Multiple of channels that the device computes in: fewer cost as much as the next multiple."""
    threads: int | None
    batch: Count
    versions: dict[str, str]
    machine: dict[str, Any]
    node_overhead_us: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """Microseconds that the engine's profiler adds to each node; the surfaces exclude them; null if unknown."""
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
        """The measured network with these `layers` (name to channels in and out) and this `input` (C, H, W).

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
    """Read a device.json as the record that a run keeps; SbsError if the file is missing or wrong."""
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
