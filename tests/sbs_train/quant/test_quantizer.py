"""The quantizer against NumPy (values, probes) and against the literal decomposition under autograd (gradients)."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sbs_train.contract.grid import Family, Role, make_grid
from sbs_train.quant import quantizer
from sbs_train.quant.quantizer import (
    EAGER,
    Sharing,
    codes_of,
    compiled_kernels,
    error_units,
    level_sums,
    level_table,
    round_to_level,
    rounding_errors,
    row_sums,
)
from tests.sbs_train.quant.decomposed import quantize, quantize_decomposed

GRIDS: list[tuple[Role, Family]] = [
    (role, family) for role in ("weight", "unsigned", "signed") for family in ("int8", "paper")
]
GATE_STATES = list(itertools.product((0.0, 1.0), repeat=2))
CLIPS = [[1.3, 1.3, 1.3], [0.6, 0.9, 1.3], [1.7, 1.1, 0.8]]
"""One clip value for all levels, tighter ones for fewer bits, and the other way round."""


def sample(shape=(3, 4, 5, 6), seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def leaf(values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype, requires_grad=True)


def gradients_of(function, clips, gates, table, *, seed=1):
    """Value, and the gradients to x, clip values and gates, for a random incoming gradient."""
    x, clip_K, gates_J = sample().requires_grad_(), leaf(clips), leaf(gates)
    y = function(x, clip_K, gates_J, table)
    y.backward(sample(seed=seed))
    return y.detach(), x.grad, clip_K.grad, gates_J.grad if gates else torch.zeros(0)


def inner_products(grad, x, clips, levels):
    """`S_MK` by NumPy: row by row, the gradient times x at every level."""
    rounded = [level.quantize(x.numpy(), clip) * clip / level.steps for clip, level in zip(clips, levels, strict=True)]
    axes = tuple(range(1, x.dim()))
    return np.stack([(grad.numpy() * values).sum(axes) for values in rounded], 1)


@pytest.mark.parametrize(("role", "family"), GRIDS)
@pytest.mark.parametrize("gates", GATE_STATES)
def test_backward_equals_the_naive_decomposition(role, family, gates):
    table = level_table(make_grid(role, (2, 4, 8), family)).double()
    selected = next((j for j, gate in enumerate(gates) if not gate), 2)
    for clips in CLIPS:
        results = [gradients_of(function, clips, list(gates), table) for function in (quantize, quantize_decomposed)]
        for ours, naive in zip(*results, strict=True):
            torch.testing.assert_close(ours, naive, rtol=1e-12, atol=1e-12)
        assert results[0][2].nonzero().flatten().tolist() == [selected]  # no other level's clip value moves


@pytest.mark.parametrize("bits", [(2, 4, 8), (4, 8), (2, 8), (8,), (3, 6, 8)])
def test_backward_holds_for_other_candidate_lists(bits):
    table = level_table(make_grid("unsigned", bits)).double()
    clips = np.linspace(0.5, 0.9, len(bits)).tolist()
    for state in itertools.product((0.0, 1.0), repeat=len(bits) - 1):
        results = [gradients_of(function, clips, list(state), table) for function in (quantize, quantize_decomposed)]
        for ours, naive in zip(*results, strict=True):
            torch.testing.assert_close(ours, naive, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gates", GATE_STATES)
def test_a_gates_gradient_is_what_opening_it_does_to_a_linear_loss(gates):
    # With loss = <G, y> and hard gates the derivative is a finite difference: the gate open, minus the gate closed.
    table = level_table(make_grid("unsigned", (2, 4, 8))).double()
    grad, clip_K = sample(seed=1), double(CLIPS[1])
    found = gradients_of(quantize, CLIPS[1], list(gates), table)[3]
    for j in range(2):
        loss = {}
        for value in (0.0, 1.0):
            state = [value if i == j else gate for i, gate in enumerate(gates)]
            y = quantize(sample(), clip_K, double(state), table)
            loss[value] = (grad * y).sum()
        torch.testing.assert_close(found[j], loss[1.0] - loss[0.0])


@pytest.mark.parametrize("rows", [None, 2])
def test_gradients_do_not_depend_on_the_memory_layout(rows):
    table = level_table(make_grid("unsigned", (2, 4, 8))).double()
    reference = None
    for of_x, of_grad in itertools.product((torch.contiguous_format, torch.channels_last), repeat=2):
        x = sample().contiguous(memory_format=of_x).requires_grad_()
        clip_K, gates_J, probe = (
            leaf([0.7, 0.9, 1.1]),
            leaf([1.0, 1.0]),
            leaf([[0.0] * 2] * rows if rows else [0.0] * 2),
        )
        y = quantize(x, clip_K, gates_J, table, EAGER, probe)
        y.backward(sample(seed=3).contiguous(memory_format=of_grad))
        found = (y.detach(), x.grad, clip_K.grad, gates_J.grad, probe.grad)
        reference = reference or found
        for a, b in zip(found, reference, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(
    grid=st.sampled_from(GRIDS),
    gates=st.sampled_from(GATE_STATES),
    clips=st.lists(st.floats(1e-3, 1e3), min_size=3, max_size=3),
    seed=st.integers(0, 1000),
)
def test_values_equal_numpy(grid, gates, clips, seed):
    chosen = make_grid(grid[0], (2, 4, 8), grid[1])
    index = next((j for j, gate in enumerate(gates) if not gate), 2)
    x = sample((200,), seed) * clips[index]
    ours = quantize(
        x,
        double(clips),
        double(gates),
        level_table(chosen).double(),
    )
    level, clip = chosen.levels[index], clips[index]
    np.testing.assert_allclose(
        ours.numpy(), level.quantize(x.numpy(), clip) * clip / level.steps, rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize(("role", "family"), GRIDS)
@pytest.mark.parametrize("rows", [None, 1, 2, 3, 7])
def test_probes_get_the_inner_products_of_the_offsets(role, family, rows):
    grid, grad, clips = make_grid(role, (2, 4, 8), family), sample(seed=1), CLIPS[1]
    sums_MK = inner_products(grad, sample(), clips, grid.levels)
    offsets_MJ = sums_MK[:, :-1] - sums_MK[:, -1:]
    expected = np.zeros((rows or 1, 2))
    expected[: len(offsets_MJ)] = offsets_MJ[:rows] if rows else offsets_MJ.sum(0)
    if not rows:
        expected = expected[0]  # one row for the whole tensor; rows beyond the batch saw nothing
    for gates in GATE_STATES:
        probe = torch.zeros_like(double(expected)).requires_grad_()
        table, x = level_table(grid).double(), sample().requires_grad_()
        quantize(x, double(clips), double(gates), table, EAGER, probe).backward(grad)
        np.testing.assert_allclose(probe.grad.numpy(), expected, rtol=1e-10, atol=1e-10)


def test_a_probe_is_a_step_towards_a_coarser_level_under_autograd():
    # What the probe stands for, written out: y + sum_k p_k (x_k - x_K), image by image, differentiated by autograd.
    grid = make_grid("signed", (2, 4, 8))
    clip_K, table = double(CLIPS[1]), level_table(grid).double()
    levels = [round_to_level(sample(), clip, row) for clip, row in zip(clip_K, table, strict=True)]
    gradients = []
    for custom in (True, False):
        probe = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
        y = quantize(sample(), clip_K, torch.ones(2).double(), table, EAGER, probe if custom else None)
        if not custom:
            y = y + sum(probe[:, k].view(-1, 1, 1, 1) * (levels[k] - levels[-1]) for k in range(2))
        y.tanh().square().sum().backward()
        gradients.append(probe.grad)
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


def test_probes_of_matrices_are_rows_of_a_batch():
    grid = make_grid("unsigned", (2, 4, 8))
    x, grad, clips = sample((5, 7)), sample((5, 7), 1), CLIPS[2]
    table = level_table(grid).double()
    expected = inner_products(grad, x, clips, grid.levels)
    np.testing.assert_allclose(row_sums(grad, x, double(clips), table).numpy(), expected, rtol=1e-10)
    total = level_sums(grad, x, double(clips), table)
    np.testing.assert_allclose(total.numpy(), expected.sum(0), rtol=1e-10)


def test_a_probe_changes_nothing_else():
    table = level_table(make_grid("unsigned", (2, 4, 8))).double()
    probe = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)

    def probed(x, clip_K, gates_J, table):
        return quantize(x, clip_K, gates_J, table, EAGER, probe)

    results = [gradients_of(function, CLIPS[1], [1.0, 0.0], table) for function in (quantize, probed)]
    assert all(map(torch.equal, *results)) and probe.grad.abs().min() > 0


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
    x, clip_K, gates_J = sample().requires_grad_(), leaf(CLIPS[1]), leaf([1.0, 1.0])
    probe = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        quantize(x, clip_K, gates_J, level_table(make_grid("unsigned", (2, 4, 8))).double(), EAGER, probe)
    large = [tensor for tensor in saved if tensor.numel() >= x.numel()]
    assert [tensor.data_ptr() for tensor in large] == [x.data_ptr()]  # the input itself, no copy of it
    assert sum(tensor.numel() for tensor in saved) < x.numel() + 32


def test_the_naive_decomposition_saves_several():
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        gradients_of(quantize_decomposed, CLIPS[1], [1.0, 1.0], level_table(make_grid("unsigned", (2, 4, 8))).double())
    assert sum(size >= sample().numel() for size in saved) > 2


def test_frozen_gates_get_no_gradient_and_cost_none(monkeypatch):
    gates_J, x = torch.ones(2), sample(dtype=torch.float32).requires_grad_()
    monkeypatch.setattr("sbs_train.quant.quantizer.row_sums", lambda *_: pytest.fail("offsets of no use"))
    kernels = type(EAGER)(
        forward=EAGER.forward, backward=EAGER.backward, level_sums=lambda *_: pytest.fail("offsets of no use")
    )
    quantize(x, torch.tensor(CLIPS[1]), gates_J, level_table(make_grid("signed", (2, 4, 8))), kernels).sum().backward()
    assert gates_J.grad is None and x.grad is not None


def test_rounding_errors_of_even_values_are_one_unit():
    grid = make_grid("unsigned", (2, 4, 8))
    z = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    errors = rounding_errors(z, torch.ones(3, dtype=torch.float64), level_table(grid).double())
    torch.testing.assert_close(errors / error_units(grid), torch.ones(2, dtype=torch.float64), rtol=1e-3, atol=0)


@settings(max_examples=30, deadline=None)
@given(grid=st.sampled_from(GRIDS), clips=st.lists(st.floats(0.1, 5), min_size=3, max_size=3))
def test_rounding_errors_equal_numpy(grid, clips):
    chosen, x = make_grid(grid[0], (2, 4, 8), grid[1]), sample((300,))
    found = rounding_errors(x, double(clips), level_table(chosen).double())
    finest = chosen.levels[-1]
    z = np.clip(x.numpy() / clips[-1], finest.code_min / finest.steps, finest.code_max / finest.steps)
    for level, clip, error in zip(chosen.levels[:-1], clips, found, strict=False):
        ratio = clip / clips[-1]
        expected = np.abs(z - level.quantize(z, ratio) * ratio / level.steps).mean()
        assert float(error) == pytest.approx(expected, rel=1e-9)


@pytest.mark.slow
def test_compiled_kernels_equal_eager():
    table = level_table(make_grid("unsigned", (2, 4, 8)))
    results = []
    for kernels in (EAGER, compiled_kernels()):
        for shape in ((2,), (2, 2)):
            x = sample(dtype=torch.float32).requires_grad_()
            clip_K, gates_J = leaf(CLIPS[1], torch.float32), leaf([1.0, 0.0], torch.float32)
            probe = torch.zeros(shape, requires_grad=True)
            y = quantize(x, clip_K, gates_J, table, kernels, probe)
            (y * sample(seed=1, dtype=torch.float32)).sum().backward()
            results.append((y.detach(), x.grad, clip_K.grad, gates_J.grad, probe.grad))
    for eager, compiled in zip(results[:2], results[2:], strict=True):
        for ours, theirs in zip(eager, compiled, strict=True):
            torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("images", [None, 3])
def test_a_probe_with_a_column_a_level_compares_with_the_unrounded_tensor(images):
    """d_k = sum G (D_k(x) - x), of the whole tensor or of each of the first images."""
    grid = make_grid("weight", (2, 4, 8))
    generator = torch.Generator().manual_seed(0)
    x, grad = torch.randn(5, 7, generator=generator), torch.randn(5, 7, generator=generator)
    clip_K, table_K4 = torch.tensor([1.0, 1.5, 2.0]), level_table(grid)
    probe = torch.zeros(3 if images is None else (images, 3), requires_grad=True)
    sharing = Sharing(clip_K=clip_K, gates_J=torch.ones(2), table_K4=table_K4, probe_MJ=probe)
    quantizer.quantize(x.requires_grad_(), sharing).backward(grad)
    steps = [round_to_level(x.detach(), clip, row) - x.detach() for clip, row in zip(clip_K, table_K4, strict=True)]
    expected = torch.stack([(grad * step).sum(1) for step in steps], 1)
    torch.testing.assert_close(probe.grad, expected.sum(0) if images is None else expected[:images])
