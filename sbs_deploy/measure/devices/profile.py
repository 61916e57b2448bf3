"""The measurements of `sbs-deploy profile-device`: networks in slim variants on a backend.

Layers are timed inside the whole network, by the engine's profiler: with fused additions and quantizers, and with the
caches as other layers leave them. A few variants show every layer at all its channels (design.py).
"""

import contextlib
import json
import math
import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sbs_deploy.backends.base import Engine
from sbs_deploy.backends.spec import Precision, require_module
from sbs_deploy.graph.arrays import input_specs, noise
from sbs_deploy.machine import clocks
from sbs_deploy.measure.devices import session
from sbs_deploy.measure.devices.networks import ProfiledNetwork, Variant
from sbs_deploy.measure.devices.session import Setup, Steps
from sbs_train.contract import rundir
from sbs_train.contract.errors import SbsError

FORMAT = 8
"""Version of the measurements; raise it when the method of measurement changes."""
VISITS = 3
"""Times that each variant is measured, far apart."""
PROFILED = 2
"""Of these visits, those with times by step."""

Entry = dict[str, Any]
Progress = Callable[[int, int, str], None]
"""A callback that gets (finished measurements, wanted measurements, name of the next)."""


class Cache:
    """Measurements by key, each a line of JSON, so that an interrupted run can go on. An incomplete line is ignored.

    Raises:
        SbsError: the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries: dict[str, list[Entry]] = {}
        rundir.make_directory(path.parent)
        text = rundir.read_bytes(path).decode(errors="replace") if rundir.is_file(path) else ""
        if text and not text.endswith("\n"):
            with rundir.appending(path) as file:
                file.write(b"\n")
        for line in text.splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                self._entries.setdefault(entry["key"], []).append(entry["found"])

    def found(self, key: str) -> list[Entry]:
        """All measurements of a key, in order."""
        return self._entries.get(key, [])

    def add(self, key: str, found: Entry) -> None:
        """Append one measurement."""
        with rundir.appending(self.path) as file:
            file.write(json.dumps({"key": key, "found": found}, allow_nan=False).encode() + b"\n")
        self._entries.setdefault(key, []).append(found)


@dataclass(frozen=True, kw_only=True)
class VariantTask:
    """One measurement of one variant."""

    network: ProfiledNetwork
    variant: Variant | None
    """None for the dense network in FP32."""
    key: str
    turn: int


class DeviceProfile:
    """The measurement of networks on one backend; every measurement is cached at once."""

    def __init__(self, networks: list[ProfiledNetwork], setup: Setup, *, points: int, cache: Cache) -> None:
        self.networks, self.setup, self.points, self.cache = networks, setup, points, cache
        self.here = here(setup)
        self.variants = {network.name: network.variants(points) for network in networks}

    def run(self, *, deadline: float | None, progress: Progress) -> None:
        """Make the measurements that the cache lacks, until `deadline` on `time.monotonic`'s clock."""
        tasks = self._tasks()
        left = [task for task in tasks if len(self.cache.found(task.key)) <= task.turn]
        with contextlib.ExitStack() as stack:
            opened: tuple[str, Engine] | None = None
            session_id = ""
            for place, task in enumerate(left):
                if deadline is not None and time.monotonic() >= deadline:
                    return
                what = f"{task.network.name}, {task.turn + 1} of {VISITS}"
                progress(len(tasks) - len(left) + place, len(tasks), what)
                if opened is None or opened[0] != task.network.name:
                    stack.close()
                    opened = task.network.name, stack.enter_context(self._reference(task.network))
                    session_id = rundir.hash_of([task.network.name, time.time_ns()])
                self.cache.add(task.key, {**self._measured(task, opened[1]), "session": session_id})
        progress(len(tasks), len(tasks), "done")

    def complete(self) -> list[ProfiledNetwork]:
        """Networks with at least one measurement of everything; SbsError if there are none."""
        found = [network for network in self.networks if all(self.cache.found(key) for key in self._keys(network))]
        if not found:
            done = sum(bool(self.cache.found(key)) for network in self.networks for key in self._keys(network))
            raise SbsError(
                f"the time ended before any network was complete ({done} measurements are in {self.cache.path}); run "
                f"the same command again to go on, or raise --time-limit-minutes"
            )
        return found

    def steps(self, network: ProfiledNetwork, variant: Variant) -> Steps:
        """The profiler's times by step: the quickest visit of each, with the nodes of all visits."""
        visits = [visit["steps"] for visit in self.cache.found(self._key(network, variant))]
        found: Steps = {}
        for name in sorted(set().union(*visits)):
            seen = [visit[name] for visit in visits if name in visit]
            found[name] = {"ms": min(one["ms"] for one in seen), "nodes": max(one["nodes"] for one in seen)}
        return found

    def whole_ms(self, network: ProfiledNetwork, variant: Variant | None) -> float:
        """Milliseconds of a variant from end to end; None for the dense network in FP32.

        The median over visits, each at the reference's quickest speed: the reference, one engine in a session, takes
        turns with the variant, and was slower by as much as the machine was. (Two engines of one network differ by a
        few percent for as long as they are open, so a time is not compared with the reference of another session.)
        """
        quickest: dict[str, float] = {}
        for visit in (visit for key in self._keys(network) for visit in self.cache.found(key)):
            quickest[visit["session"]] = min(visit["reference_ms"], quickest.get(visit["session"], math.inf))
        visits = self.cache.found(self._key(network, variant))
        return float(np.median([one["ms"] * quickest[one["session"]] / one["reference_ms"] for one in visits]))

    def _tasks(self) -> list[VariantTask]:
        """All tasks: first every network once, in order, so that some are complete early; then other visits."""
        shuffle = random.Random(0).shuffle
        tasks: list[VariantTask] = []
        for turn in range(VISITS):
            for network in self.networks:
                own = [
                    VariantTask(network=network, variant=variant, key=self._key(network, variant), turn=turn)
                    for variant in self._wanted(network)
                ]
                shuffle(own)
                tasks += own
        return tasks

    def _reference(self, network: ProfiledNetwork) -> AbstractContextManager[Engine]:
        """The dense INT8 network, which every variant is timed beside."""
        graph = network.graph(self.variants[network.name][0], self.setup.backend)
        return session.opened(graph, "int8", self.setup)

    def _measured(self, task: VariantTask, reference: Engine) -> Entry:
        network, variant, setup = task.network, task.variant, self.setup
        graph = network.model if variant is None else network.graph(variant, setup.backend)
        in_float = variant is None or network.in_float(variant)
        float_type: Precision = "fp16" if variant is not None and setup.backend.float_type == "fp16" else "fp32"
        by_step = variant is not None and variant.profiled and task.turn < PROFILED
        steps = partial(session.step_times, model=graph, layers=network.layers) if by_step else None
        with session.opened(graph, float_type if in_float else "int8", setup) as engine:
            return session.visit(engine, reference, noise(input_specs(graph), setup.batch), steps)

    def _wanted(self, network: ProfiledNetwork) -> list[Variant | None]:
        return [*self.variants[network.name], None]

    def _keys(self, network: ProfiledNetwork) -> list[str]:
        return [self._key(network, variant) for variant in self._wanted(network)]

    def _key(self, network: ProfiledNetwork, variant: Variant | None) -> str:
        what = None if variant is None else [sorted(variant.counts.items()), sorted(variant.in_float)]
        return rundir.hash_of([FORMAT, network.sha256, what, self.here])


def here(setup: Setup) -> dict[str, object]:
    """Values besides the graph that change times: device, backend and version, threads, batch."""
    backend = setup.backend
    module = require_module(backend)
    device = (clocks.gpu_name() or "no GPU") if backend.run_needs_gpu else clocks.cpu_model()
    return {
        "device": device,
        "vector_flags": [] if backend.run_needs_gpu else [*clocks.vector_flags(), clocks.onednn_limit()],
        "target": backend.label,
        "version": str(module.__version__),
        "threads": setup.threads,
        "batch": setup.batch,
    }
