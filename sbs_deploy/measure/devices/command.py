"""All steps of `sbs-deploy profile-device`: networks, alignment, measurement, file, summary."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sbs_deploy.backends.spec import DEFAULT_BACKEND, Backend, require_module
from sbs_deploy.machine import clocks
from sbs_deploy.measure import units
from sbs_deploy.measure.devices.alignment import measured_alignment
from sbs_deploy.measure.devices.model import device_model
from sbs_deploy.measure.devices.networks import ProfiledNetwork, load_network
from sbs_deploy.measure.devices.profile import Cache, DeviceProfile, Progress
from sbs_deploy.measure.devices.session import Setup
from sbs_train.contract import rundir
from sbs_train.contract.device import DeviceModel, HeldOut, save_device
from sbs_train.contract.errors import SbsError

if TYPE_CHECKING:
    from rich.table import Table

DEFAULT_OUT = Path("device.json")
CERTAIN_SCALE = (0.8, 1.25)
"""Range of scales without a warning: outside, a network's time differs much from the sum of its layers."""


@dataclass(frozen=True, kw_only=True)
class ProfileOptions:
    """Options of `profile-device`."""

    backend: Backend
    models: tuple[str, ...]
    out: Path
    input: tuple[int, int, int]
    classes: int | None = None
    width: int = 16
    threads: int = 1
    batch: int = 1
    align: int | None = None
    points: int = 4
    time_limit_minutes: float | None = None


def profile_device(options: ProfileOptions) -> DeviceModel:
    """Measure, and write `options.out`; every measurement is cached beside the file at once.

    Raises:
        SbsError: bad options, a backend that is not installed or has no device here, a model that cannot be measured,
            or a time limit that ended before any network was complete.
    """
    _check(options)
    require_module(options.backend)
    limit = options.time_limit_minutes
    deadline = None if limit is None else time.monotonic() + 60 * limit
    setup = Setup(backend=options.backend, threads=options.threads, batch=options.batch)
    networks = [
        load_network(name, options.input, options.classes, options.width, options.batch) for name in options.models
    ]
    for network in networks:
        _try(network, options)
    beside = DEFAULT_OUT if rundir.is_stdout(options.out) else options.out
    cache = Cache(beside.with_name(f"{beside.name}.cache.jsonl"))
    with _progress() as progress:
        align = options.align
        if align is None:
            align = measured_alignment(setup, cache, deadline, progress)
        profile = DeviceProfile(networks, setup, align=align, points=options.points, cache=cache)
        profile.run(deadline=deadline, progress=progress)
    device = device_model(profile)
    save_device(device, options.out)
    return device


def device_table(device: DeviceModel) -> "Table":
    """A table for people, with a row per network."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE)
    for name in ("model", "input", "layers", "dense FP32", "dense INT8", "speed-up", "in layers", "scale"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for network in device.networks:
        steps = network.layers, network.others
        layers, others = (sum(device.surfaces[step.surface].ms[-1][-1] for step in some) for some in steps)
        table.add_row(
            Text(network.model),
            "x".join(map(str, network.input)),
            str(len(network.layers)),
            units.milliseconds(network.fp32_ms),
            units.milliseconds(network.quantized_ms),
            units.times(network.fp32_ms / network.quantized_ms),
            units.percent(100 * layers / (layers + others)),
            units.times(network.scale),
        )
    return table


def summary(device: DeviceModel, wanted: Sequence[str]) -> list[str]:
    """Sentences on the errors of the predictions, on warnings, and on missing networks."""
    found = [network.model for network in device.networks]
    images = "one image" if device.batch == 1 else f"a batch of {device.batch} images"
    scales = ", ".join(f"{one.model} {units.times(one.scale)}" for one in device.networks)
    added = device.node_overhead_us
    lines = [
        f"{device.target} on {device.device}: {len(device.surfaces)} surfaces, channels in steps of {device.align}; "
        f"milliseconds are those of {images}",
        f"what the profiler adds to a node: {'not known' if added is None else f'{added:.1f} us, taken out'}",
        f"scale, what a network as a whole takes over the sum of its layers' times: {scales}",
        f"error at channels that were not used: {_errors(device.held_out)}",
    ]
    low, high = CERTAIN_SCALE
    uncertain = [network.model for network in device.networks if not low <= network.scale <= high]
    if uncertain:
        lines.append(
            f"warning: the scale of {', '.join(uncertain)} is not within {low:g} to {high:g}: together the layers take "
            f"much more or less than the profiler says of each, and predictions are less certain; measure with a "
            f"larger --batch or a larger network"
        )
    missing = [name for name in wanted if name not in found]
    if missing:
        lines.append(f"the time limit left out {', '.join(missing)}; run the same command again to go on")
    return lines


def _try(network: ProfiledNetwork, options: ProfileOptions) -> None:
    """Make the slimmest variant, so that SbsError for unsupported graphs comes before any measurement."""
    shape, batch = network.model.graph.input[0].type.tensor_type.shape.dim, options.batch
    if options.backend.run_needs_gpu and shape[0].dim_value:
        raise SbsError(
            f"{network.name} has a fixed batch of {batch}, and {options.backend.label} needs an open one; export it so"
        )
    grid = network.variants(options.align or 1, options.points)
    network.graph(min(grid, key=lambda one: sum(one.counts.values())), options.backend)


def _check(options: ProfileOptions) -> None:
    if options.out.is_dir():
        raise SbsError(f"--out {options.out} is a directory; name a file, such as {options.out / 'device.json'}")
    if not rundir.is_stdout(options.out):
        rundir.require_replaceable(options.out)
    for flag, value in (("--threads", options.threads), ("--batch", options.batch), ("--align", options.align)):
        if value is not None and value < 1:
            raise SbsError(f"{flag} {value} must be at least 1")
    if options.points < 2:
        raise SbsError(f"--points {options.points} must be at least 2: a slope needs two")
    if not options.models:
        raise SbsError("--models: name at least one, such as resnet20 or torchvision:resnet18")
    if len(set(options.models)) != len(options.models):
        raise SbsError("--models: a model is named twice")
    if options.time_limit_minutes is not None and not options.time_limit_minutes > 0:
        raise SbsError(f"--time-limit-minutes {options.time_limit_minutes:g} must be above 0")
    if options.backend.run_needs_gpu and clocks.gpu_name() is None:
        raise SbsError(
            f"--backend {options.backend.name} is measured on a GPU and none was found; run this on the device, or "
            f"profile {DEFAULT_BACKEND.flags}"
        )


@contextmanager
def _progress() -> Iterator[Progress]:
    """A progress bar on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Bar(*columns, console=Console(stderr=True)) as bar:
        shown = bar.add_task("profile", total=None)
        yield lambda done, total, what: bar.update(shown, completed=done, total=total, description=what)


def _errors(held: HeldOut) -> str:
    layers = f"layers {held.median_error:.1%} (median) and {held.p90_error:.1%} (p90) of {held.points} points"
    wholes = f"whole networks from end to end {held.network_error:.1%} (median of {held.networks})"
    found = [text for text, count in ((layers, held.points), (wholes, held.networks)) if count]
    return ", ".join(found) or "no point was held out"
