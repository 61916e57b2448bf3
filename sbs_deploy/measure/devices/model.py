"""Make device.json from measurements: surfaces over channels, and what changes of precision cost."""

import datetime
from collections.abc import Sequence

import numpy as np

from sbs_deploy.machine import clocks
from sbs_deploy.measure.devices.channels import shapes_of
from sbs_deploy.measure.devices.fit import Fitted, Layer, Timed, fitted
from sbs_deploy.measure.devices.networks import ProfiledNetwork, Variant
from sbs_deploy.measure.devices.profile import DeviceProfile
from sbs_deploy.measure.devices.session import owners_of
from sbs_deploy.measure.devices.surfaces import Key, Pools, shapes_by_layer
from sbs_train.contract.device import DeviceModel, HeldOut, NetworkCost, Step, Surface
from sbs_train.contract.latency import steps_at


def device_model(profile: DeviceProfile) -> DeviceModel:
    """The record of device.json with all completely measured networks; SbsError if there are none."""
    networks, setup = profile.complete(), profile.setup
    pools = _pools(profile, networks)
    place = {key: index for index, key in enumerate(pools.ms)}
    steps = [_steps(network, pools, place, setup.batch) for network in networks]
    guess = pools.surfaces()
    used = [
        _timed(profile, network, index, variant, pools, steps[index])
        for index, network in enumerate(networks)
        for variant in profile.variants[network.name]
        if not variant.held_out
    ]
    found = fitted(guess, len(networks), used)
    surfaces = [
        Surface(
            kind=kind,
            shape=shape,
            channels_in=one.channels_in,
            channels_out=one.channels_out,
            ms=ms[0].tolist(),
            float_ms=ms[1].tolist(),
        )
        for (kind, shape, *_), one, ms in zip(pools.ms, guess, found.surfaces, strict=True)
    ]
    device = DeviceModel(
        schema_version=2,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        target=setup.backend.label,
        device=str(profile.here["device"]),
        precision="int8",
        threads=None if setup.backend.run_needs_gpu else setup.threads,
        batch=setup.batch,
        versions={setup.backend.module: str(profile.here["version"])},
        machine=clocks.machine_state().model_dump(mode="json"),
        surfaces=surfaces,
        networks=_costs(profile, networks, steps, found),
        held_out=HeldOut(networks=0, median_error=0.0, worst_error=0.0),
    )
    return device.model_copy(update={"held_out": _held_out(profile, device, networks)})


def _pools(profile: DeviceProfile, networks: Sequence[ProfiledNetwork]) -> Pools:
    """The profiler's times of all networks."""
    detail = f"batch {profile.setup.batch}"
    pools = Pools(points=profile.points, shapes={one.name: shapes_by_layer(one, detail) for one in networks})
    for network in networks:
        for variant in profile.variants[network.name]:
            if variant.profiled:
                pools.add(network, variant.counts, profile.steps(network, variant), network.in_float(variant))
    return pools


def _steps(network: ProfiledNetwork, pools: Pools, place: dict[Key, int], batch: int) -> list[Step]:
    """The layers of a network."""
    owners, shapes = owners_of(network.model), shapes_of(network.model)
    keys = {name: key for name, key, _ in pools.layers(network, {})}
    found = []
    for layer in network.axes.layers:
        tensor = network.model.graph.node[layer.node].input[0]
        elements = batch * int(np.prod(shapes[tensor][1:], dtype=np.int64))
        surface = place[keys[layer.name]]
        found.append(Step(name=layer.name, surface=surface, follows=owners.get(tensor), elements=max(1, elements)))
    return found


def _costs(
    profile: DeviceProfile, networks: Sequence[ProfiledNetwork], steps: Sequence[list[Step]], found: Fitted
) -> list[NetworkCost]:
    """What every network costs besides its layers."""
    return [
        NetworkCost(
            model=network.name,
            input=network.input,
            layers=steps[index],
            rest_ms=found.rest_ms[index],
            switch_us=1e3 * found.switch_ms[index],
            switch_ns=1e6 * found.element_ms[index],
            fp32_ms=profile.whole_ms(network, None),
            quantized_ms=profile.whole_ms(network, profile.variants[network.name][0]),
        )
        for index, network in enumerate(networks)
    ]


def _timed(
    profile: DeviceProfile, network: ProfiledNetwork, index: int, variant: Variant, pools: Pools, steps: list[Step]
) -> Timed:
    """A variant as the fit takes it."""
    parts, layers = network.parts(variant.counts), []
    for step, (name, _, channels) in zip(steps, pools.layers(network, variant.counts), strict=True):
        in_float = name in variant.in_float
        changes = step.follows is not None and (step.follows in variant.in_float) != in_float
        switched = step.elements * parts[name][0] if changes else 0.0
        layers.append(Layer(surface=step.surface, in_float=in_float, channels=channels, switched=switched))
    return Timed(network=index, layers=layers, ms=profile.whole_ms(network, variant))


def _held_out(profile: DeviceProfile, device: DeviceModel, networks: Sequence[ProfiledNetwork]) -> HeldOut:
    """Relative errors of the held-out variants."""
    errors = []
    for network, cost in zip(networks, device.networks, strict=True):
        for variant in profile.variants[network.name]:
            if variant.held_out:
                predicted = sum(steps_at(device, cost, network.parts(variant.counts), variant.in_float).values())
                errors.append(abs(predicted / profile.whole_ms(network, variant) - 1))
    return HeldOut(
        networks=len(errors),
        median_error=float(np.median(errors)) if errors else 0.0,
        worst_error=max(errors, default=0.0),
    )
