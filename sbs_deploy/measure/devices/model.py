"""device.json from what was measured: surfaces over channels, and what a network makes of their sum."""

import datetime
from collections.abc import Iterator, Sequence

import numpy as np

from sbs_deploy.backends.spec import require_module
from sbs_deploy.machine import clocks
from sbs_deploy.measure.devices.describe import describe
from sbs_deploy.measure.devices.networks import Network, Variant
from sbs_deploy.measure.devices.overhead import Totals, node_overhead_ms
from sbs_deploy.measure.devices.predict import steps_at
from sbs_deploy.measure.devices.profile import Profile
from sbs_deploy.measure.devices.samples import Pools
from sbs_deploy.measure.devices.steps import BEHIND
from sbs_train.contract.cost import INT8_BITS
from sbs_train.contract.device import DeviceModel, HeldOut, NetworkCost


def device_model(profile: Profile) -> DeviceModel:
    """All networks that are complete; SbsError if none is."""
    complete = profile.complete()
    overhead_ms = node_overhead_ms([_totals(profile, network) for network in complete])
    networks = [_Measured(profile, network, overhead_ms or 0.0) for network in complete]
    detail = f"int8, batch {profile.setup.batch}"
    pools = Pools(
        align=profile.align,
        points=profile.points,
        descriptions={one.network.name: describe(one.network, detail) for one in networks},
        behind={one.network.name: one.behind() for one in networks},
    )
    for one in networks:
        for variant in one.used:
            pools.add(one.network, variant, one.step_ms(variant))
    pools.fit()
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
        surfaces=list(pools.surfaces.values()),
        networks=[one.cost(pools) for one in networks],
        held_out=HeldOut(points=0, median_error=0.0, p90_error=0.0),
    )
    scaled = [one.scaled(device, cost) for one, cost in zip(networks, device.networks, strict=True)]
    device = device.model_copy(update={"networks": scaled})
    return device.model_copy(update={"held_out": _held_out(device, networks)})


class _Measured:
    """One network of a profile, whose profiler adds `overhead_ms` to a node."""

    def __init__(self, profile: Profile, network: Network, overhead_ms: float) -> None:
        self.profile, self.network, self.overhead_ms = profile, network, overhead_ms
        self.variants = profile.variants[network.name]
        self.used = _used(profile, network)

    def whole_ms(self, variant: Variant) -> float:
        """From end to end."""
        return self.profile.whole_ms(self.network, variant)

    def step_ms(self, variant: Variant) -> dict[str, float]:
        """Milliseconds by step, without what the profiler adds to a node."""
        steps = self.profile.steps(self.network, variant)
        return {name: max(0.0, spent["ms"] - self.overhead_ms * spent["nodes"]) for name, spent in steps.items()}

    def behind(self) -> list[str]:
        """Steps that are no layers, whichever variants have them."""
        steps = [self.profile.steps(self.network, variant) for variant in self.variants]
        return sorted({name for found in steps for name in found if name.startswith(BEHIND)})

    def cost(self, pools: Pools) -> NetworkCost:
        """The network on its surfaces, as if it took their sum."""
        layers, others = pools.steps(self.network)
        quantized_ms = self.whole_ms(self.variants[0])
        return NetworkCost(
            model=self.network.name,
            input=self.network.input,
            layers=layers,
            others=others,
            shared=self.network.shared,
            fp32_ms=quantized_ms * self.profile.speedup(self.network),
            quantized_ms=quantized_ms,
            scale=1.0,
        )

    def scaled(self, device: DeviceModel, cost: NetworkCost) -> NetworkCost:
        """The same with the scale that is right for most variants: plans are slim ones, not the dense network."""
        found = [self.whole_ms(one) / sum(self.predicted(device, cost, one).values()) for one in self.used]
        return cost.model_copy(update={"scale": float(np.median(found))})

    def predicted(self, device: DeviceModel, cost: NetworkCost, variant: Variant) -> dict[str, float]:
        """Milliseconds by step as the search pays them."""
        bits = {name: variant.bits.get(name, INT8_BITS) for name in self.network.layers}
        return steps_at(device, cost, self.network.parts(variant.kept), bits)

    def errors(self, device: DeviceModel, cost: NetworkCost) -> Iterator[tuple[list[float], float]]:
        """(errors of layers against the profiler, of the whole against the clock) of each variant held out."""
        for variant in self.variants:
            if variant.held_out:
                predicted = self.predicted(device, cost, variant)
                steps = self.profile.steps(self.network, variant)
                named = {name: steps[name] for name in self.network.layers if name in steps and steps[name]["ms"]}
                layers = [
                    abs((predicted[name] / cost.scale + self.overhead_ms * spent["nodes"]) / spent["ms"] - 1)
                    for name, spent in named.items()
                ]
                yield layers, abs(sum(predicted.values()) / self.whole_ms(variant) - 1)


def _used(profile: Profile, network: Network) -> list[Variant]:
    return [variant for variant in profile.variants[network.name] if not variant.held_out]


def _totals(profile: Profile, network: Network) -> list[Totals]:
    found = []
    for variant in _used(profile, network):
        steps = profile.steps(network, variant).values()
        found.append(
            Totals(
                whole_ms=profile.whole_ms(network, variant),
                profiled_ms=sum(step["ms"] for step in steps),
                nodes=sum(step["nodes"] for step in steps),
                # OpenVINO names no node of a network whose nodes all take less than it counts.
                shortest_ms=min((step["ms"] / step["nodes"] for step in steps), default=0.0),
            )
        )
    return found


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
