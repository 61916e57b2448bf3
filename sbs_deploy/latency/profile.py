"""`sbs-deploy profile-device`: networks, measured in slim variants on a target, as device.json.

Layers are not timed alone but where they stand: the engine's own profiler tells what each takes in a variant of the
whole network, with the additions and quantizers that the engine fuses into it and the caches as its neighbours leave
them. A few variants show every layer at all its channels (design.py).
"""

import datetime
import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx

from sbs_deploy.bench import clocks
from sbs_deploy.bench.protocol import Protocol, measure, speedup
from sbs_deploy.engine.products import pairs_saturate
from sbs_deploy.latency import session
from sbs_deploy.latency.cache import Cache, Entry
from sbs_deploy.latency.describe import describe
from sbs_deploy.latency.networks import Network, Variant
from sbs_deploy.latency.predict import steps_at
from sbs_deploy.latency.samples import Pools
from sbs_deploy.latency.session import Setup
from sbs_deploy.latency.steps import BEHIND
from sbs_deploy.targets import ONNXRUNTIME, Precision, require_module
from sbs_train.contract import rundir
from sbs_train.contract.device import FULL_BITS, DeviceModel, HeldOut, NetworkCost
from sbs_train.contract.errors import SbsError

FORMAT = 5
"""Of the measurements; raise it when the same graph is measured in another way."""
VISITS = 3
"""Times that each variant is measured, far apart; the quickest counts, since a neighbour makes nothing quicker."""
END_TO_END = Protocol(rounds=15)

Progress = Callable[[int, int, str], None]
"""(measurements done, wanted, what is next)."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One thing to measure."""

    network: Network
    variant: Variant
    end_to_end: bool
    """As a whole, the dense network beside the float one; else step by step."""
    key: str
    turn: int


class Profile:
    """The measurement of some networks on one target; everything measured is in the cache at once."""

    def __init__(self, networks: list[Network], setup: Setup, *, align: int, points: int, cache: Cache) -> None:
        self.networks, self.setup, self.align, self.points, self.cache = networks, setup, align, points, cache
        self.here = here(setup)
        coarse = setup.target is ONNXRUNTIME and pairs_saturate()
        self.variants = {network.name: network.variants(align, points, coarse=coarse) for network in networks}

    def run(self, *, deadline: float | None, progress: Progress) -> None:
        """Measure what is not in the cache, until `deadline` on `time.monotonic`'s clock."""
        tasks = self._tasks()
        left = [task for task in tasks if len(self.cache.found(task.key)) <= task.turn]
        for place, task in enumerate(left):
            if deadline is not None and time.monotonic() >= deadline:
                return
            what = "end to end" if task.end_to_end else f"turn {task.turn + 1} of {VISITS}"
            progress(len(tasks) - len(left) + place, len(tasks), f"{task.network.name}, {what}")
            self.cache.add(task.key, self._measured(task))
        progress(len(tasks), len(tasks), "done")

    def complete(self) -> list[Network]:
        """Networks of which everything was measured at least once."""
        return [network for network in self.networks if all(self.cache.found(key) for key in self._keys(network))]

    def device_model(self) -> DeviceModel:
        """What was measured, as device.json; SbsError if no network is complete."""
        networks = self.complete()
        if not networks:
            done = sum(bool(self.cache.found(key)) for network in self.networks for key in self._keys(network))
            raise SbsError(
                f"the time ended before any network was complete ({done} measurements are in {self.cache.path}); run "
                f"the same command again to go on, or raise --time-limit-minutes"
            )
        detail = f"int8, batch {self.setup.batch}"
        pools = Pools(
            align=self.align,
            points=self.points,
            descriptions={network.name: describe(network, detail) for network in networks},
            behind={network.name: self._behind(network) for network in networks},
        )
        for network in networks:
            for variant in self.variants[network.name]:
                if not variant.held_out:
                    pools.add(network, variant, self._visit(network, variant))
        pools.fit()
        target, module = self.setup.target, require_module(self.setup.target)
        device = DeviceModel(
            schema_version=1,
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            target=target.label,
            device=str(self.here["device"]),
            precision="int8",
            align=self.align,
            threads=None if target.run_needs_gpu else self.setup.threads,
            batch=self.setup.batch,
            versions={target.module: str(module.__version__)},
            machine=clocks.machine_state().as_json(),
            surfaces=list(pools.surfaces.values()),
            networks=[self._cost(network, pools) for network in networks],
            held_out=HeldOut(points=0, median_error=0.0, p90_error=0.0),
        )
        return device.model_copy(update={"held_out": self._held_out(device, networks)})

    def _cost(self, network: Network, pools: Pools) -> NetworkCost:
        layers, others = pools.steps(network)
        dense = self.variants[network.name][0]
        wholes = self.cache.found(self._key(network, dense, end_to_end=True))
        surfaces = list(pools.surfaces.values())
        quantized_ms = self._whole_ms(network, dense)
        total = sum(surfaces[step.surface].ms[-1][-1] for step in (*layers, *others))
        return NetworkCost(
            model=network.name,
            input=network.input,
            layers=layers,
            others=others,
            shared=network.shared,
            fp32_ms=quantized_ms * float(np.median([whole["speedup"] for whole in wholes])),
            quantized_ms=quantized_ms,
            scale=quantized_ms / total,
        )

    def _held_out(self, device: DeviceModel, networks: list[Network]) -> HeldOut:
        """Predictions as the search pays them: layers against the profiler, whole networks against the clock."""
        layers: list[float] = []
        wholes: list[float] = []
        for network, cost in zip(networks, device.networks, strict=True):
            for variant in self.variants[network.name]:
                if not variant.held_out:
                    continue
                bits = {name: variant.bits.get(name, FULL_BITS) for name in network.layers}
                predicted = steps_at(device, cost, network.parts(variant.kept), bits)
                wholes.append(abs(sum(predicted.values()) / self._whole_ms(network, variant) - 1))
                measured = {name: cost.scale * ms for name, ms in self._visit(network, variant).items()}
                layers += [abs(predicted[name] / measured[name] - 1) for name in network.layers if measured.get(name)]
        return HeldOut(
            points=len(layers),
            median_error=float(np.median(layers)) if layers else 0.0,
            p90_error=float(np.percentile(layers, 90)) if layers else 0.0,
            networks=len(wholes),
            network_error=float(np.median(wholes)) if wholes else 0.0,
        )

    def _behind(self, network: Network) -> list[str]:
        visits = [self._visit(network, variant) for variant in self.variants[network.name]]
        return sorted({name for visit in visits for name in visit if name.startswith(BEHIND)})

    def _tasks(self) -> list[Task]:
        """First every network once, one after the other, so that one is complete early; then the other turns, mixed."""
        shuffle = random.Random(0).shuffle
        tasks: list[Task] = []
        for turn in range(VISITS):
            mixed: list[Task] = []
            for network in self.networks:
                own = [
                    Task(
                        network=network,
                        variant=variant,
                        end_to_end=end_to_end,
                        key=self._key(network, variant, end_to_end=end_to_end),
                        turn=turn,
                    )
                    for variant, end_to_end in self._wanted(network)
                ]
                shuffle(own)
                mixed += own
            if turn:
                shuffle(mixed)
            tasks += mixed
        return tasks

    def _measured(self, task: Task) -> Entry:
        network, target = task.network, self.setup.target
        graph = network.graph(task.variant, target)
        if not task.end_to_end:
            return dict(session.visit(graph, network.layers, self.setup))
        inputs = session.images(graph, self.setup.batch)
        models: dict[Precision, onnx.ModelProto] = {"int8": graph}
        if not task.variant.held_out:
            models["fp32"] = network.model
        with ExitStack() as stack:
            engines = {name: stack.enter_context(session.opened(models[name], name, self.setup)) for name in models}
            times = measure({name: partial(engines[name].latency_ms, inputs) for name in engines}, END_TO_END)
        found: Entry = {"quantized_ms": float(times["int8"].all_ms().min())}
        if "fp32" in times:
            ratio, low, high = speedup(times["fp32"], times["int8"])
            found |= {"speedup": ratio, "interval": [low, high]}
        return found

    def _visit(self, network: Network, variant: Variant) -> dict[str, float]:
        """Milliseconds by step: of each the quickest visit."""
        visits = self.cache.found(self._key(network, variant))
        return {name: min(visit.get(name, 0.0) for visit in visits) for name in set().union(*visits)}

    def _whole_ms(self, network: Network, variant: Variant) -> float:
        """Milliseconds of a quantized variant from end to end: the quickest."""
        return min(
            float(whole["quantized_ms"]) for whole in self.cache.found(self._key(network, variant, end_to_end=True))
        )

    def variant_ms(self, network: Network, variant: Variant) -> float:
        """Milliseconds of all steps of a variant together."""
        return sum(self._visit(network, variant).values())

    def _wanted(self, network: Network) -> list[tuple[Variant, bool]]:
        """(variant, whether from end to end): all by step; the dense one and those held out as a whole, too."""
        dense, *others = self.variants[network.name]
        whole = [dense, *(variant for variant in others if variant.held_out)]
        return [(variant, False) for variant in (dense, *others)] + [(variant, True) for variant in whole]

    def _keys(self, network: Network) -> list[str]:
        return [self._key(network, variant, end_to_end=whole) for variant, whole in self._wanted(network)]

    def _key(self, network: Network, variant: Variant, *, end_to_end: bool = False) -> str:
        what = [sorted(variant.kept.items()), variant.bits, *(["end to end"] if end_to_end else [])]
        return rundir.hash_of([FORMAT, network.sha256, what, self.here])


def here(setup: Setup) -> dict[str, object]:
    """What decides a time besides the graph: the device, its target and version, threads, batch."""
    target = setup.target
    module = require_module(target)
    device = (clocks.gpu_name() or "no GPU") if target.run_needs_gpu else clocks.cpu_model()
    return {
        "device": device,
        "vector_flags": [] if target.run_needs_gpu else list(clocks.vector_flags()),
        "target": target.label,
        "version": str(module.__version__),
        "threads": setup.threads,
        "batch": setup.batch,
    }
