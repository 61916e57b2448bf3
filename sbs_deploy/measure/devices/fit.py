"""Fit the times of layers to the times of whole networks, with the profiler's times as the first guess.

A profiler adds some time to every node, or counts whole microseconds, so the sum of its times is not the time of the
network, and no single factor mends that. Every variant of a network was timed from end to end as well:

    time of a variant = rest + sum of its layers' times + changes of precision * (a + b * elements)

    time of a layer   = guess * (1 + for its precision + for its surface + for its channels) + nodes * overhead

which is linear in what is to be found. There are more unknowns than variants, so each has a width, how far from the
guess it usually is, and squared errors are traded against squared widths (ridge regression). What would be negative is
held at 0. Layers of equal precision share most of a correction, those of one surface the next part.

Shapes: V variants; U unknowns, three of each network first; I, J channels of a surface; 2 precisions, INT8 first.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sbs_deploy.measure.devices.surfaces import SMALLEST_MS, Floats, Profiled

NOISE, NOISE_MIXED = 0.03, 0.05
"""Part by which measured times of whole networks err, and those of networks of two precisions."""
WIDTH_PRECISION, WIDTH_SURFACE, WIDTH_CHANNELS = 1.0, 0.3, 0.1
"""Usual corrections, as parts of the profiler's time."""
RESOLUTION_MS = 5e-4
"""Error of the profiler's time of a layer that no part of it covers: half of a microsecond."""
LEAST = 0.3
"""Least part of the profiler's time that a layer takes: a search chooses the layers whose times came out too small."""
WIDTH_NODE_MS = 2e-3
WIDTH_REST, WIDTH_SWITCH = 0.1, 0.05
"""Usual rest and cost of a change of precision, as parts of the network's time."""
WIDTH_ELEMENT_MS = 1e-6
"""Usual cost of every element of a change of precision."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer of a variant."""

    surface: int
    in_float: bool
    channels: tuple[int, int]
    switched: float
    """Elements of the layer's input if the layer before it has another precision, else 0."""


@dataclass(frozen=True, kw_only=True)
class Timed:
    """One variant, timed from end to end."""

    network: int
    layers: Sequence[Layer]
    ms: float


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """Milliseconds that explain all variants."""

    surfaces: list[Floats]
    """`(2, I, J)` of every surface."""
    rest_ms: list[float]
    """By network."""
    switch_ms: list[float]
    element_ms: list[float]


def fitted(surfaces: Sequence[Profiled], networks: int, variants: Sequence[Timed]) -> Fitted:
    """The layers' times by ridge regression on the whole networks' times."""
    guess = [np.maximum(one.ms, SMALLEST_MS) for one in surfaces]
    starts = np.cumsum([3 * networks + 3, *(2 + one.size for one in guess)])
    widths: list[float] = []
    for network in range(networks):
        usual_ms = float(np.median([one.ms for one in variants if one.network == network]))
        widths += [WIDTH_REST * usual_ms, WIDTH_SWITCH * usual_ms, WIDTH_ELEMENT_MS]
    widths += [WIDTH_PRECISION, WIDTH_PRECISION, WIDTH_NODE_MS]
    for ms in guess:
        widths += [WIDTH_SURFACE, WIDTH_SURFACE, *(WIDTH_CHANNELS + RESOLUTION_MS / ms).ravel()]
    width_U = np.array(widths)
    rows, expected = [], []
    for variant in variants:
        row_U, known = np.zeros(len(width_U)), 0.0
        row_U[3 * variant.network] = 1.0
        for layer in variant.layers:
            row_U[3 * variant.network + 1] += layer.switched > 0
            row_U[3 * variant.network + 2] += layer.switched
            one, ms, start = surfaces[layer.surface], guess[layer.surface], starts[layer.surface]
            part_IJ = np.outer(
                _weights(one.channels_in, layer.channels[0]), _weights(one.channels_out, layer.channels[1])
            )
            share = part_IJ * ms[int(layer.in_float)]
            known += share.sum()
            row_U[[3 * networks + layer.in_float, start + layer.in_float]] += share.sum()
            row_U[3 * networks + 2] += (part_IJ * one.nodes[int(layer.in_float)]).sum()
            points = slice(start + 2 + layer.in_float * share.size, start + 2 + (1 + layer.in_float) * share.size)
            row_U[points] += share.ravel()
        mixed = len({layer.in_float for layer in variant.layers}) > 1
        error_ms = variant.ms * (NOISE_MIXED if mixed else NOISE)
        rows.append(row_U / error_ms)
        expected.append((variant.ms - known) / error_ms)
    found_U = _ridge(np.array(rows), np.array(expected), width_U, 3 * networks)
    times = []
    for one, ms, start in zip(surfaces, guess, starts, strict=False):
        of_surface, of_channels = found_U[start : start + 2], found_U[start + 2 : start + 2 + ms.size]
        factor = 1 + (found_U[3 * networks : 3 * networks + 2] + of_surface)[:, None, None]
        corrected = ms * (factor + of_channels.reshape(ms.shape)) + found_U[3 * networks + 2] * one.nodes
        times.append(np.maximum(corrected, LEAST * ms))
    rest, switch, element = (found_U[place : 3 * networks : 3].tolist() for place in range(3))
    return Fitted(surfaces=times, rest_ms=rest, switch_ms=switch, element_ms=element)


def _ridge(rows_VU: Floats, expected_V: Floats, width_U: Floats, positive: int) -> Floats:
    """The unknowns with the least squared errors and widths; the first `positive` of them are not below 0."""
    free_U = np.ones(len(width_U), bool)
    while True:
        scaled_VU = rows_VU[:, free_U] * width_U[free_U]
        gram_VV = scaled_VU @ scaled_VU.T + np.eye(len(rows_VU))
        found_U = np.zeros(len(width_U))
        found_U[free_U] = width_U[free_U] * (scaled_VU.T @ np.linalg.solve(gram_VV, expected_V))
        below = np.flatnonzero(found_U[:positive] < 0)
        if not len(below):
            return found_U
        free_U[below] = False


def _weights(channels: Sequence[int], count: int) -> Floats:
    """Weight of every measured number of channels in the linear interpolation at `count`."""
    return np.array([np.interp(count, channels, one) for one in np.eye(len(channels))])
