"""Bits that make a target go another way, against sums over the file's own rows."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sbs_train.contract.detour import CoarseInput, Detour, ReadersDiffer
from sbs_train.quant.gates import GateBank
from tests.sbs_train.devices import device_for, space_on
from tests.sbs_train.small import small_network

NETWORK = small_network()
NAMES = list(NETWORK.layers)
SHARED = (
    ([NAMES[0], NAMES[2]], [NAMES[3]], True),  # a residual addition, which reads 8 bits
    ([NAMES[4]], [NAMES[5], NAMES[6]], False),  # a block's first convolution and its shortcut
    ([NAMES[4]], [NAMES[7]], True),  # the same layer makes a second shared tensor
)
COARSE = (NAMES[6], NAMES[8])
DEVICE = device_for(NETWORK, others=[NAMES[2], NAMES[4], NAMES[9]], shared=SHARED, coarse=COARSE)


def ms_by_hand(bits_a):
    """Of the dense network: the last entry of the surface that each step is on."""
    slow = {
        owner
        for owners, readers, added in SHARED
        if len({bits_a[name] for name in readers} | ({8} if added else set())) > 1
        for owner in owners
    }
    total, measured = 0.0, DEVICE.networks[0]
    for step in (*measured.layers, *measured.others):
        ms = DEVICE.surfaces[step.surface].ms[-1][-1]
        total += ms * (2 if (step.follows or step.name) in slow else 1)
        total -= ms / 2 if step.name in COARSE and bits_a[step.name] == 2 else 0
    return total


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_networks_cost_what_their_bits_make_the_target_do(seed):
    space = space_on(NETWORK, DEVICE)
    bits = np.random.default_rng(seed).choice([2, 4, 8], len(space.searched))
    bits_a = {name: 8 for name in NAMES} | dict(zip(space.searched, bits.tolist(), strict=True))
    full = [1.0] * len(space.prunable)
    found = space.total([8] * len(bits), bits, full, space.cost)
    assert found == pytest.approx(ms_by_hand(bits_a))
    assert space.bops([8] * len(bits), bits, full) == pytest.approx(
        sum(space.layers[name].macs * bits_a[name] * 8 for name in NAMES)
    )


def test_thresholds_pay_the_same_and_learn_from_the_channels():
    space = space_on(NETWORK, DEVICE)
    bank, rng = GateBank(space), np.random.default_rng(0)
    bits_w, bits_a = rng.choice([2, 4, 8], (2, len(space.searched)))
    kept = torch.tensor(rng.uniform(0.4, 1, len(space.prunable)), dtype=torch.float32, requires_grad=True)
    bits_L = [torch.from_numpy(bits).float() for bits in space.all_bits(bits_w, bits_a)]
    found = bank.cost(*bits_L, kept)
    assert space.detours_taken(space.cost, bits_L[1].numpy()).any()
    assert found.item() == pytest.approx(space.total(bits_w, bits_a, kept.tolist(), space.cost), rel=1e-5)
    found.backward()
    for p in range(len(space.prunable)):
        fewer, more = kept.tolist(), kept.tolist()
        fewer[p], more[p] = fewer[p] - 1e-4, more[p] + 1e-4
        slope = (space.total(bits_w, bits_a, more, space.cost) - space.total(bits_w, bits_a, fewer, space.cost)) / 2e-4
        assert kept.grad[p].item() == pytest.approx(slope, rel=1e-2)


def test_the_cheapest_plan_takes_quick_ways_and_no_slow_ones():
    space = space_on(NETWORK, DEVICE)
    _, high = space.reachable()
    least = [space.fraction(g, space.blocks(g) - space.prunable_blocks(g)) for g in space.prunable]
    count = len(space.searched)
    all_coarse = space.reduction([2] * count, [2] * count, least)
    all_fine = space.reduction([2] * count, [8] * count, least)
    wise = [2 if name == COARSE[1] else 8 for name in space.searched]
    assert high >= space.reduction([2] * count, wise, least) > max(all_coarse, all_fine)


def test_causes():
    bits = np.array([2, 4, 4, 8])
    assert CoarseInput(layer=0, bits=2).holds(bits) and not CoarseInput(layer=1, bits=2).holds(bits)
    assert not ReadersDiffer(layers=(1, 2), others=frozenset()).holds(bits)
    assert ReadersDiffer(layers=(1, 2), others=frozenset({8})).holds(bits)
    assert ReadersDiffer(layers=(0, 1), others=frozenset()).holds(bits)
    assert not ReadersDiffer(layers=(3,), others=frozenset({8})).holds(bits)
    both = Detour(item=0, causes=(CoarseInput(layer=3, bits=2), ReadersDiffer(layers=(0, 3), others=frozenset())))
    assert both.layers == {0, 3} and both.taken(bits) and not both.taken(np.full(4, 8))
