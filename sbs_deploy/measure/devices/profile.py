"""The measurements of `sbs-deploy profile-device`: networks in slim variants on a backend.

Layers are timed inside the whole network, by the engine's profiler: with fused additions and quantizers, and with the
caches as other layers leave them. A few variants show every layer at all its channels (design.py).
"""

import contextlib
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from sbs_deploy.backends.spec import Precision, require_module
from sbs_deploy.machine import clocks
from sbs_deploy.measure.devices import session
from sbs_deploy.measure.devices.networks import ProfiledNetwork, Variant
from sbs_deploy.measure.devices.session import Setup, Spent
from sbs_deploy.measure.protocol import Protocol, measure, speedup
from sbs_train.contract import rundir
from sbs_train.contract.errors import SbsError

FORMAT = 6
"""Version of the measurements; raise it when the method of measurement changes."""
VISITS = 3
"""Times that each variant is measured, far apart; the quickest counts, since other processes only slow it."""
IN_TURNS = Protocol(rounds=15)

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
    variant: Variant
    beside_float: bool
    """Whether the variant is timed in turns with the float network; else as a whole and by step."""
    key: str
    turn: int


class DeviceProfile:
    """The measurement of networks on one backend; every measurement is cached at once."""

    def __init__(
        self,
        networks: list[ProfiledNetwork],
        setup: Setup,
        *,
        align: int,
        points: int,
        cache: Cache,
        whole: bool = True,
    ) -> None:
        """
        Args:
            whole: whether networks are also timed from end to end, not only by step.
        """
        self.networks, self.setup, self.align, self.points, self.cache = networks, setup, align, points, cache
        self.whole = whole
        self.here = here(setup)
        self.variants = {network.name: network.variants(align, points) for network in networks}

    def run(self, *, deadline: float | None, progress: Progress) -> None:
        """Make the measurements that the cache lacks, until `deadline` on `time.monotonic`'s clock."""
        tasks = self._tasks()
        left = [task for task in tasks if len(self.cache.found(task.key)) <= task.turn]
        for place, task in enumerate(left):
            if deadline is not None and time.monotonic() >= deadline:
                return
            what = "beside FP32" if task.beside_float else f"turn {task.turn + 1} of {VISITS}"
            progress(len(tasks) - len(left) + place, len(tasks), f"{task.network.name}, {what}")
            self.cache.add(task.key, self._measured(task))
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

    def steps(self, network: ProfiledNetwork, variant: Variant) -> dict[str, Spent]:
        """The profiler's times by step: the quickest visit of each, with the nodes of all visits."""
        visits = [visit["steps"] for visit in self.cache.found(self._key(network, variant))]
        found: dict[str, Spent] = {}
        for name in sorted(set().union(*visits)):
            seen = [visit[name] for visit in visits if name in visit]
            found[name] = {"ms": min(one["ms"] for one in seen), "nodes": max(one["nodes"] for one in seen)}
        return found

    def whole_ms(self, network: ProfiledNetwork, variant: Variant) -> float:
        """Milliseconds of a quantized variant from end to end, in the quickest visit."""
        return min(float(visit["whole_ms"]) for visit in self.cache.found(self._key(network, variant)))

    def speedup(self, network: ProfiledNetwork) -> float:
        """Speed-up of the dense quantized network over the float network."""
        turns = self.cache.found(self._key(network, self.variants[network.name][0], beside_float=True))
        return float(np.median([turn["speedup"] for turn in turns]))

    def _tasks(self) -> list[VariantTask]:
        """All tasks: first every network once, in order, so that some are complete early; then other visits, mixed."""
        shuffle = random.Random(0).shuffle
        tasks: list[VariantTask] = []
        for turn in range(VISITS):
            mixed: list[VariantTask] = []
            for network in self.networks:
                own = [
                    VariantTask(
                        network=network,
                        variant=variant,
                        beside_float=beside_float,
                        key=self._key(network, variant, beside_float=beside_float),
                        turn=turn,
                    )
                    for variant, beside_float in self._wanted(network)
                ]
                shuffle(own)
                mixed += own
            if turn:
                shuffle(mixed)
            tasks += mixed
        return tasks

    def _measured(self, task: VariantTask) -> Entry:
        network, backend = task.network, self.setup.backend
        graph = network.graph(task.variant, backend)
        if not task.beside_float:
            return dict(session.visit(graph, network.layers, self.setup, self.whole))
        inputs = session.images(graph, self.setup.batch)
        models: dict[Precision, onnx.ModelProto] = {"int8": graph, "fp32": network.model}
        with contextlib.ExitStack() as stack:
            engines = {name: stack.enter_context(session.opened(models[name], name, self.setup)) for name in models}
            times = measure({name: partial(engines[name].latency_ms, inputs) for name in engines}, IN_TURNS)
        ratio, low, high = speedup(times["fp32"], times["int8"])
        return {"speedup": ratio, "interval": [low, high]}

    def _wanted(self, network: ProfiledNetwork) -> list[tuple[Variant, bool]]:
        """(variant, beside float): all variants alone, and the dense one also in turns with the float network."""
        variants = self.variants[network.name]
        return [(variant, False) for variant in variants] + ([(variants[0], True)] if self.whole else [])

    def _keys(self, network: ProfiledNetwork) -> list[str]:
        return [self._key(network, variant, beside_float=beside) for variant, beside in self._wanted(network)]

    def _key(self, network: ProfiledNetwork, variant: Variant, *, beside_float: bool = False) -> str:
        what = [sorted(variant.counts.items()), *(["beside float"] if beside_float else [])]
        return rundir.hash_of([FORMAT, network.sha256, what, self.here])


def here(setup: Setup) -> dict[str, object]:
    """Values besides the graph that change times: device, backend and version, threads, batch."""
    backend = setup.backend
    module = require_module(backend)
    device = (clocks.gpu_name() or "no GPU") if backend.run_needs_gpu else clocks.cpu_model()
    return {
        "device": device,
        "vector_flags": [] if backend.run_needs_gpu else list(clocks.vector_flags()),
        "target": backend.label,
        "version": str(module.__version__),
        "threads": setup.threads,
        "batch": setup.batch,
    }
