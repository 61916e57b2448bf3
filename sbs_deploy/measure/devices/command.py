"""All steps of `sbs-deploy profile-device`: networks, measurement, file, summary."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sbs_deploy.backends.spec import DEFAULT_BACKEND, Backend, require_module
from sbs_deploy.machine import clocks
from sbs_deploy.measure import units
from sbs_deploy.measure.devices.model import device_model
from sbs_deploy.measure.devices.networks import ProfiledNetwork, load_network
from sbs_deploy.measure.devices.profile import Cache, DeviceProfile, Progress
from sbs_deploy.measure.devices.session import Setup
from sbs_train.contract import rundir
from sbs_train.contract.device import DeviceModel, save_device
from sbs_train.contract.errors import SbsError

if TYPE_CHECKING:
    from rich.table import Table

DEFAULT_OUT = Path("device.json")
CERTAIN = 0.05
"""Error at held-out networks up to which predictions come without a warning."""


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
        profile = DeviceProfile(networks, setup, points=options.points, cache=cache)
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
    for name in ("model", "input", "layers", "dense FP32", "dense INT8", "speed-up", "a change of precision"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for network in device.networks:
        table.add_row(
            Text(network.model),
            "x".join(map(str, network.input)),
            str(len(network.layers)),
            units.milliseconds(network.fp32_ms),
            units.milliseconds(network.quantized_ms),
            units.times(network.fp32_ms / network.quantized_ms),
            f"{network.switch_us:.1f} us + {network.switch_ns:.2f} ns an element",
        )
    return table


def summary(device: DeviceModel, wanted: Sequence[str]) -> list[str]:
    """Sentences on the errors of the predictions, on warnings, and on missing networks."""
    found = [network.model for network in device.networks]
    images = "one image" if device.batch == 1 else f"a batch of {device.batch} images"
    held = device.held_out
    lines = [
        f"{device.target} on {device.device}: {len(device.surfaces)} surfaces; milliseconds are those of {images}",
        f"error at networks that were not used: {held.median_error:.1%} (median) and {held.worst_error:.1%} (worst) of "
        f"{held.networks}",
    ]
    if held.median_error > CERTAIN:
        lines.append(
            "warning: predictions are uncertain; measure again where nothing else runs, or with a larger --batch"
        )
    missing = [name for name in wanted if name not in found]
    if missing:
        lines.append(f"the time limit left out {', '.join(missing)}; run the same command again to go on")
    return lines


def _try(network: ProfiledNetwork, options: ProfileOptions) -> None:
    """Make the slimmest variant, so that SbsError for unsupported graphs comes before any measurement."""
    first = network.model.graph.input[0].type.tensor_type.shape.dim[:1]
    if options.backend.run_needs_gpu and any(axis.dim_value for axis in first):
        raise SbsError(
            f"{network.name} has a fixed batch of {options.batch}, and {options.backend.label} needs an open one; "
            "export it so"
        )
    variants = network.variants(options.points)
    network.graph(min(variants, key=lambda one: sum(one.counts.values())), options.backend)


def _check(options: ProfileOptions) -> None:
    if options.out.is_dir():
        raise SbsError(f"--out {options.out} is a directory; name a file, such as {options.out / 'device.json'}")
    if not rundir.is_stdout(options.out):
        rundir.require_replaceable(options.out)
    for flag, value in (("--threads", options.threads), ("--batch", options.batch)):
        if value < 1:
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
