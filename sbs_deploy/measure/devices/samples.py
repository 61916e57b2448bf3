"""Everything measured of a network as samples of its steps, and those as the surfaces and steps of device.json."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from sbs_deploy.graph.names import INPUT
from sbs_deploy.measure.devices.describe import Description
from sbs_deploy.measure.devices.design import levels_of
from sbs_deploy.measure.devices.fit import surface_of
from sbs_deploy.measure.devices.networks import Network, Variant
from sbs_deploy.measure.devices.steps import BEHIND
from sbs_deploy.measure.devices.synthetic import owners_that_differ
from sbs_train.contract.device import COARSE_BITS, Step, Surface

Visit = dict[str, float]
"""Milliseconds by step."""
Key = tuple[str, str, tuple[int, ...], tuple[int, ...], bool, bool]
"""What layers with one surface have in common: kind; shape, or network and name of what is no layer; dense ends; which
of them may change; whether the readers of what they write differ; whether their input is coarse."""


@dataclass(kw_only=True)
class _Pool:
    """Samples of one surface."""

    kind: str
    shape: str
    ms: dict[tuple[int, int], list[float]] = field(default_factory=dict)


@dataclass(kw_only=True)
class Pools:
    """Samples of all networks, layers that are alike together."""

    align: int
    points: int
    descriptions: dict[str, Description]
    """By network."""
    behind: dict[str, list[str]]
    """Steps of each network that are no layers, whichever of its variants have them."""
    pools: dict[Key, _Pool] = field(default_factory=dict)
    surfaces: dict[Key, Surface] = field(default_factory=dict)

    def add(self, network: Network, variant: Variant, visit: Visit) -> None:
        """What one variant took."""
        for name, key, point in self._steps(network, variant):
            kind, shape = self.descriptions[network.name].of(name)
            pool = self.pools.setdefault(key, _Pool(kind=kind, shape=shape))
            pool.ms.setdefault(point, []).append(visit.get(name, 0.0))

    def fit(self) -> None:
        """Surfaces of all pools."""
        for key, pool in self.pools.items():
            ends = [sorted({point[end] for point in pool.ms}) for end in (0, 1)]
            few = [values if len(values) <= self.points + 1 else self._few(values) for values in ends]
            self.surfaces[key] = Surface(
                kind=pool.kind,
                shape=pool.shape,
                channels_in=few[0],
                channels_out=few[1],
                ms=surface_of(pool.ms, *few).tolist(),
            )

    def steps(self, network: Network) -> tuple[list[Step], list[Step]]:
        """The layers of a network and what runs behind them, on the surfaces."""
        index = {key: place for place, key in enumerate(self.surfaces)}
        layers: list[Step] = []
        others: list[Step] = []
        keys: dict[str, dict[tuple[bool, bool], int]] = {}
        for bits in network.states(coarse=True):
            for name, key, _ in self._steps(network, Variant(kept={}, bits=bits, held_out=False)):
                if key in index:
                    keys.setdefault(name, {})[key[-2:]] = index[key]
        for name, found in keys.items():
            follows = name.removeprefix(BEHIND) or None if name.startswith(BEHIND) else None
            step = Step(
                name=name if name != BEHIND else INPUT,
                surface=found[False, False],
                follows=follows,
                split=found.get((True, False)),
                coarse=found.get((True, True), found.get((False, True))),
            )
            (others if name.startswith(BEHIND) else layers).append(step)
        return layers, others

    def _steps(self, network: Network, variant: Variant) -> Iterable[tuple[str, Key, tuple[int, int]]]:
        """(name, key, channels) of every step of a network."""
        about = self.descriptions[network.name]
        layers = {layer.name: layer for layer in network.axes.layers}
        owners = owners_that_differ(network.shared, variant.bits)
        for name in (*layers, *self.behind[network.name]):
            follows = name.removeprefix(BEHIND)
            layer = layers.get(follows)
            kind, shape = about.of(name)
            if layer is None:
                yield name, (kind, f"{network.name} {name}", (), (), False, False), (1, 1)
                continue
            dense, now = network.ends(layer, {}), network.ends(layer, variant.kept)
            whose = f"{network.name} {name}" if name.startswith(BEHIND) else shape
            coarse = variant.bits.get(name, COARSE_BITS + 1) <= COARSE_BITS
            key = (kind, whose, dense, about.open_ends(layer), follows in owners, coarse)
            if name.startswith(BEHIND):
                yield name, key, (now[1], dense[1])
            elif about.one_axis(layer):
                yield name, key, (now[0], dense[1])
            else:
                yield name, key, now

    def _few(self, values: list[int]) -> list[int]:
        return [value for value in levels_of(values[-1], self.align, self.points) if value >= values[0]]
