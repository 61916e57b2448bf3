"""Make device.json from measurements: surfaces over channels, and the scale of each network.

A profiler adds some time to every node that an engine runs, in networks of small layers more than the layers take. So a
whole network takes about `factor * (profiled - overhead * nodes)`, with a factor per network. The overhead is the
profiler's (2 to 3 us a node on one CPU), and negative if the profiler drops times below a microsecond. Slim variants
separate the two: their layers are faster at an equal number of nodes.
"""

import datetime
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sbs_deploy.backends.spec import require_module
from sbs_deploy.machine import clocks
from sbs_deploy.measure.devices.networks import ProfiledNetwork, Variant
from sbs_deploy.measure.devices.profile import DeviceProfile
from sbs_deploy.measure.devices.session import BEHIND, Spent
from sbs_deploy.measure.devices.surfaces import Pools, describe
from sbs_train.contract.device import DeviceModel, HeldOut, NetworkCost
from sbs_train.contract.latency import steps_at

FEWEST = 4
"""Fewest variants of a network in the fit: with fewer, noise decides."""
RESOLUTION_MS = 1e-3
"""Error in milliseconds of a profiled node besides its overhead."""
CERTAIN = 2.0
"""Standard errors by which the overhead of a node must differ from 0."""
_STEPS = 2001
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Total times of one variant of a network."""

    whole_ms: float
    """Milliseconds from end to end, with the profiler off."""
    profiled_ms: float
    """Sum of all nodes in milliseconds, by the profiler."""
    nodes: int
    shortest_ms: float
    """Milliseconds per node in the step with the shortest nodes."""


def device_model(profile: DeviceProfile) -> DeviceModel:
    """The record of device.json with all completely measured networks; SbsError if there are none."""
    networks = [_Measured(profile, network) for network in profile.complete()]
    overhead_ms = node_overhead_ms([one.totals() for one in networks])
    detail = f"int8, batch {profile.setup.batch}"
    pools = Pools(
        align=profile.align,
        points=profile.points,
        descriptions={one.network.name: describe(one.network, detail) for one in networks},
        behind={one.network.name: one.behind() for one in networks},
    )
    for one in networks:
        for variant in one.used:
            pools.add(one.network, variant.counts, one.step_ms(variant, overhead_ms or 0.0))
    backend, module = profile.setup.backend, require_module(profile.setup.backend)
    device = DeviceModel(
        schema_version=1,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        target=backend.label,
        device=str(profile.here["device"]),
        precision="int8",
        align=profile.align,
        threads=None if backend.run_needs_gpu else profile.setup.threads,
        batch=profile.setup.batch,
        versions={backend.module: str(module.__version__)},
        machine=clocks.machine_state().model_dump(mode="json"),
        node_overhead_us=None if overhead_ms is None else 1e3 * overhead_ms,
        surfaces=pools.surfaces(),
        networks=[one.cost(pools) for one in networks],
        held_out=HeldOut(points=0, median_error=0.0, p90_error=0.0),
    )
    scaled = [one.scaled(device, cost) for one, cost in zip(networks, device.networks, strict=True)]
    device = device.model_copy(update={"networks": scaled})
    return device.model_copy(update={"held_out": _held_out(device, networks)})


def node_overhead_ms(networks: Sequence[Sequence[Totals]]) -> float | None:
    """Milliseconds that the profiler adds to a node, by least squares of variants' relative errors; None if unclear.

    The search range keeps all nodes' times above 0.
    """
    telling = [variants for variants in networks if len(variants) >= FEWEST]
    if not telling:
        return None
    high = RESOLUTION_MS + min(one.shortest_ms for variants in telling for one in variants)
    around, half = (high - RESOLUTION_MS) / 2, (high + RESOLUTION_MS) / 2
    for _ in range(3):  # refine the search range
        tried = np.clip(np.linspace(around - half, around + half, _STEPS), -RESOLUTION_MS, high)
        around, half = float(tried[np.argmin(_squared_errors(telling, tried))]), 4 * half / _STEPS
    without, best = _squared_errors(telling, np.array([0.0, around]))
    free = sum(map(len, telling)) - len(telling) - 1
    return around if without - best > CERTAIN**2 * best / free + _ROUNDING else None


class _Measured:
    """One network of a profile."""

    def __init__(self, profile: DeviceProfile, network: ProfiledNetwork) -> None:
        self.profile, self.network = profile, network
        self.variants = profile.variants[network.name]
        self.used = [variant for variant in self.variants if not variant.held_out]

    def whole_ms(self, variant: Variant) -> float:
        """Milliseconds of a variant from end to end."""
        return self.profile.whole_ms(self.network, variant)

    def steps(self, variant: Variant) -> dict[str, Spent]:
        """The profiler's times of a variant, by step."""
        return self.profile.steps(self.network, variant)

    def step_ms(self, variant: Variant, overhead_ms: float) -> dict[str, float]:
        """Milliseconds by step, minus the profiler's `overhead_ms` per node."""
        return {
            name: max(0.0, spent["ms"] - overhead_ms * spent["nodes"]) for name, spent in self.steps(variant).items()
        }

    def totals(self) -> list[Totals]:
        """Total times of the variants in the fit."""
        found = []
        for variant in self.used:
            steps = self.steps(variant).values()
            found.append(
                Totals(
                    whole_ms=self.whole_ms(variant),
                    profiled_ms=sum(step["ms"] for step in steps),
                    nodes=sum(step["nodes"] for step in steps),
                    # A profiler lists no nodes if all of them are below its resolution.
                    shortest_ms=min((step["ms"] / step["nodes"] for step in steps), default=0.0),
                )
            )
        return found

    def behind(self) -> list[str]:
        """Steps that are no layers, in any variant."""
        return sorted({name for one in self.variants for name in self.steps(one) if name.startswith(BEHIND)})

    def cost(self, pools: Pools) -> NetworkCost:
        """The network's steps on their surfaces, with scale 1."""
        layers, others = pools.steps(self.network)
        quantized_ms = self.whole_ms(self.variants[0])
        return NetworkCost(
            model=self.network.name,
            input=self.network.input,
            layers=layers,
            others=others,
            fp32_ms=quantized_ms * self.profile.speedup(self.network),
            quantized_ms=quantized_ms,
            scale=1.0,
        )

    def scaled(self, device: DeviceModel, cost: NetworkCost) -> NetworkCost:
        """`cost` with the median scale over variants, since plans are slim networks, not the dense one."""
        found = [self.whole_ms(one) / sum(self.predicted(device, cost, one).values()) for one in self.used]
        return cost.model_copy(update={"scale": float(np.median(found))})

    def predicted(self, device: DeviceModel, cost: NetworkCost, variant: Variant) -> dict[str, float]:
        """Milliseconds of a variant by step, as the search computes them."""
        return steps_at(device, cost, self.network.parts(variant.counts))

    def errors(self, device: DeviceModel, cost: NetworkCost) -> Iterator[tuple[list[float], float]]:
        """For each held-out variant: relative errors of layers (profiler) and of the whole network (clock)."""
        overhead_ms = (device.node_overhead_us or 0.0) / 1e3
        for variant in self.variants:
            if variant.held_out:
                predicted = self.predicted(device, cost, variant)
                steps = self.steps(variant)
                named = {name: steps[name] for name in self.network.layers if name in steps and steps[name]["ms"]}
                layers = [
                    abs((predicted[name] / cost.scale + overhead_ms * spent["nodes"]) / spent["ms"] - 1)
                    for name, spent in named.items()
                ]
                yield layers, abs(sum(predicted.values()) / self.whole_ms(variant) - 1)


def _held_out(device: DeviceModel, networks: Sequence[_Measured]) -> HeldOut:
    found = [pair for one, cost in zip(networks, device.networks, strict=True) for pair in one.errors(device, cost)]
    layers, wholes = [error for errors, _ in found for error in errors], [whole for _, whole in found]
    return HeldOut(
        points=len(layers),
        median_error=float(np.median(layers)) if layers else 0.0,
        p90_error=float(np.percentile(layers, 90)) if layers else 0.0,
        networks=len(wholes),
        network_error=float(np.median(wholes)) if wholes else 0.0,
    )


def _squared_errors(
    networks: Sequence[Sequence[Totals]], overheads_C: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Summed squared relative errors of all variants by overhead (C), each network with its best factor."""
    total = np.zeros(len(overheads_C))
    for variants in networks:
        whole, profiled, nodes = (
            np.array([getattr(one, name) for one in variants]) for name in ("whole_ms", "profiled_ms", "nodes")
        )
        parts_CV = (profiled - overheads_C[:, None] * nodes) / whole
        # sum (1 - factor * part)^2 at factor = sum part / sum part^2, which must not be negative
        total += len(variants) - np.maximum(parts_CV.sum(1), 0) ** 2 / np.maximum((parts_CV**2).sum(1), 1e-30)
    return total
