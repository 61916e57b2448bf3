"""The quantizer against NumPy (values) and against the literal decomposition under autograd (gradients)."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sbs_train.contract.grid import Family, Role, make_grid
from sbs_train.quant.quantizer import (
    codes_of,
    compiled_kernels,
    error_units,
    level_table,
    quantize,
    quantize_decomposed,
    round_to_level,
    rounding_errors,
)

GRIDS: list[tuple[Role, Family]] = [
    (role, family) for role in ("weight", "unsigned", "signed") for family in ("int8", "paper")
]
GATE_STATES = list(itertools.product((0.0, 1.0), repeat=2))


def sample(shape=(3, 4, 5, 6), seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize(("role", "family"), GRIDS)
@pytest.mark.parametrize("gates", GATE_STATES)
def test_backward_equals_the_naive_decomposition(role, family, gates):
    table = level_table(make_grid(role, (2, 4, 8), family)).double()
    upstream = sample(seed=1)
    results = []
    for function in (quantize, quantize_decomposed):
        x = sample().requires_grad_()
        clip = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
        gates_J = torch.tensor(gates, dtype=torch.float64, requires_grad=True)
        y = function(x, clip, gates_J, table)
        y.backward(upstream)
        results.append((y.detach(), x.grad, clip.grad, gates_J.grad))
    for ours, naive in zip(*results, strict=True):
        torch.testing.assert_close(ours, naive, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bits", [(2, 4, 8), (4, 8), (2, 8), (8,), (3, 6, 8)])
def test_backward_holds_for_other_candidate_lists(bits):
    table = level_table(make_grid("unsigned", bits)).double()
    for state in itertools.product((0.0, 1.0), repeat=len(bits) - 1):
        results = []
        for function in (quantize, quantize_decomposed):
            x, clip = sample().requires_grad_(), torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
            gates_J = torch.tensor(state, dtype=torch.float64, requires_grad=True)
            y = function(x, clip, gates_J, table)
            (y * sample(seed=2)).sum().backward()
            results.append((y.detach(), x.grad, clip.grad, gates_J.grad if state else torch.zeros(0)))
        for ours, naive in zip(*results, strict=True):
            torch.testing.assert_close(ours, naive, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_do_not_depend_on_the_memory_layout(layout):
    table = level_table(make_grid("unsigned", (2, 4, 8))).double()
    reference = None
    for chosen in (torch.contiguous_format, layout):
        x = sample().contiguous(memory_format=chosen).requires_grad_()
        clip = torch.tensor(1.1, dtype=torch.float64, requires_grad=True)
        gates_J = torch.ones(2, dtype=torch.float64, requires_grad=True)
        quantize(x, clip, gates_J, table).mul(sample(seed=3)).sum().backward()
        found = (x.grad, clip.grad, gates_J.grad)
        reference = reference or found
        for a, b in zip(found, reference, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(
    grid=st.sampled_from(GRIDS),
    level=st.integers(0, 2),
    clip=st.floats(1e-3, 1e3),
    seed=st.integers(0, 1000),
)
def test_values_equal_numpy(grid, level, clip, seed):
    chosen = make_grid(grid[0], (2, 4, 8), grid[1])
    x = sample((200,), seed) * clip
    gates_J = torch.tensor([1.0] * level + [0.0] * (2 - level), dtype=torch.float64)
    ours = quantize(x, torch.tensor(clip, dtype=torch.float64), gates_J, level_table(chosen).double())
    codes = chosen.levels[level].quantize(x.numpy(), clip)
    np.testing.assert_allclose(ours.numpy(), codes * clip / chosen.levels[level].steps, rtol=1e-9, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(role=st.sampled_from(["weight", "unsigned", "signed"]), level=st.integers(0, 2), seed=st.integers(0, 1000))
def test_codes_equal_numpy_and_reproduce_the_forward_value(role, level, seed):
    chosen = make_grid(role, (2, 4, 8)).levels[level]
    row = level_table(make_grid(role, (2, 4, 8)))[level]
    x, clip = sample((500,), seed, torch.float32), torch.tensor(0.7)
    codes = codes_of(x, clip, row, odd=chosen.odd)
    assert codes.dtype == torch.int8
    np.testing.assert_array_equal(codes.numpy(), chosen.quantize(x.numpy(), 0.7))
    torch.testing.assert_close(codes * (clip / chosen.steps), round_to_level(x, clip, row))


def test_an_offset_is_the_quantized_remainder():
    # r_k = D_k(z - D_{k-1}): what makes a finer quantization the coarser one plus a re-assignment (section 3.1).
    grid = make_grid("unsigned", (2, 4, 8))
    z = torch.rand(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one = torch.ones((), dtype=torch.float64)
    rows = level_table(grid).double()
    coarse, fine = round_to_level(z, one, rows[0]), round_to_level(z, one, rows[1])
    steps = grid.levels[1].steps
    torch.testing.assert_close(fine - coarse, torch.round((z - coarse) * steps) / steps)


def test_saves_its_input_once_for_the_backward_pass():
    x, clip = sample().requires_grad_(), torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    gates_J = torch.ones(2, dtype=torch.float64, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        quantize(x, clip, gates_J, level_table(make_grid("unsigned", (2, 4, 8))).double())
    assert sum(size >= x.numel() for size in saved) == 1


def test_frozen_gates_get_no_gradient_and_cost_none():
    gates_J = torch.ones(2)
    x = sample(dtype=torch.float32).requires_grad_()
    quantize(x, torch.tensor(1.0), gates_J, level_table(make_grid("signed", (2, 4, 8)))).sum().backward()
    assert gates_J.grad is None and x.grad is not None


def test_rounding_errors_of_even_values_are_one_unit():
    grid = make_grid("unsigned", (2, 4, 8))
    z = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    errors = rounding_errors(z, torch.ones((), dtype=torch.float64), level_table(grid).double())
    torch.testing.assert_close(errors / error_units(grid), torch.ones(2, dtype=torch.float64), rtol=1e-3, atol=0)


@pytest.mark.slow
def test_compiled_kernels_equal_eager():
    table = level_table(make_grid("unsigned", (2, 4, 8)))
    results = []
    for kernels in ((), (compiled_kernels(),)):
        x = sample(dtype=torch.float32).requires_grad_()
        clip, gates_J = torch.tensor(1.2, requires_grad=True), torch.tensor([1.0, 0.0], requires_grad=True)
        y = quantize(x, clip, gates_J, table, *kernels)
        (y * sample(seed=1, dtype=torch.float32)).sum().backward()
        results.append((y.detach(), x.grad, clip.grad, gates_J.grad))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-5)
