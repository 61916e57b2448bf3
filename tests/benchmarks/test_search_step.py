"""The comparison measures what it says: saved bytes against hand counts, rival methods against what they compute."""

import builtins
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

# Benchmarks are scripts: they import each other from their own folder.
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import search_step
import step_measure
import step_method
import step_multipath
import step_peers
import step_report
import step_sbs

SETTING = step_method.Setting(
    model="resnet20", width=8, image=8, batch=4, classes=10, device=torch.device("cpu"), optimizer=True
)


class SaveTwice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x, x.flatten())
        return x + 1

    @staticmethod
    def backward(ctx, grad):
        return grad


def method_of(model, x):
    return step_method.Method(name="m", bits="", note="", model=model, loss=lambda index: model(x).sum())


def test_saved_bytes_counts_storages_once_and_no_parameters():
    # The linear layer saves its input, 4x8, and its weight; ReLU its result, 4x16, which the second layer saves again.
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    assert step_measure.saved_bytes(method_of(model, torch.randn(4, 8))) == 4 * (4 * 8 + 4 * 16)


def test_saved_bytes_sees_custom_functions():
    model = torch.nn.Linear(8, 8)
    method = method_of(model, torch.randn(4, 8))
    method.loss = lambda index: SaveTwice.apply(model(torch.ones(4, 8))).sum()
    # The layer's input and its output; the function saved the latter and a view of it.
    assert step_measure.saved_bytes(method) == 4 * (4 * 8 + 4 * 8)


def test_what_the_graph_dropped_is_not_saved():
    model = torch.nn.Linear(8, 8)

    def loss(index):
        model(torch.ones(400, 8)).relu().sum()
        return model(torch.ones(4, 8)).sum()

    method = method_of(model, torch.ones(4, 8))
    method.loss = loss
    assert step_measure.saved_bytes(method) == 4 * 4 * 8


def test_peak_bytes_on_the_cpu():
    def loss(index):
        for _ in range(3):
            torch.empty(2**18).mul_(2)  # 1 MiB at a time
        return model(torch.ones(4, 8)).sum()

    model = torch.nn.Linear(8, 8)
    method = method_of(model, None)
    method.loss = loss
    assert 2**20 <= step_measure.peak_bytes(method, SETTING.device) < 1.1 * 2**20


def test_the_naive_search_computes_what_ours_does():
    ours, naive = step_sbs.thresholds(SETTING), step_sbs.naive(SETTING)
    for index in (0, 1):
        losses = [method.loss(index) for method in (ours, naive)]
        torch.testing.assert_close(losses[0], losses[1])


@pytest.mark.parametrize(
    ("paths", "chosen"), [(step_multipath.SAME_BITS, (4, 4)), (step_multipath.ALL_PAIRS, (2, 8)), (((8, 8),), (8, 8))]
)
def test_multi_path_with_one_path_chosen_is_plain_quantization(paths, chosen):
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(8, 8, 3, padding=1)
    module = step_multipath.MultiPath(layer, paths, signed=True, clip_a=2.0, compiled=False)
    x_NCHW = torch.randn(2, 8, 5, 5)
    with torch.no_grad():
        module.theta.copy_(torch.tensor([100.0 if path == chosen else -100.0 for path in paths]))
    passes = step_sbs.kernels(compiled=False)
    (row_w, _), (_, row_a) = (step_sbs.level_rows(bits, signed=True) for bits in chosen)
    weight = passes.forward(layer.weight.detach(), 3.0 * layer.weight.detach().std(), row_w)
    wanted = F.conv2d(passes.forward(x_NCHW, torch.tensor(2.0), row_a), weight, layer.bias, padding=1)
    torch.testing.assert_close(module(x_NCHW), wanted)
    assert module.bops(10).item() == pytest.approx(10 * chosen[0] * chosen[1])


@pytest.mark.parametrize("build", [step_sbs.plain_qat, step_sbs.sbs, step_sbs.thresholds, step_multipath.multi_path])
def test_methods_train(build):
    method = build(SETTING)
    before = [p.detach().clone() for p in method.model.parameters() if p.dim() > 1]
    step_measure.warm_up(method)
    after = [p for p in method.model.parameters() if p.dim() > 1]
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("build", [step_peers.brevitas, step_peers.modelopt])
def test_a_peer_that_is_not_installed_is_a_reason(build, monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.partition(".")[0] in ("brevitas", "modelopt"):
            raise ImportError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr("importlib.import_module", refuse)
    with pytest.raises(step_method.Missing, match="not measured: .* is not installed"):
        build(SETTING)


def test_paired_ratio_is_within_rounds():
    assert search_step.paired_ratio([2.0, 60.0, 4.0], [1.0, 30.0, 1.0]) == 2.0


def test_report_gives_no_number_for_what_did_not_run():
    row = {
        "name": "FP32",
        "bits": "32/32",
        "note": "",
        "step_ms_p50": 2.0,
        "step_ms_min": 1.0,
        "time_vs_fp32": 1.0,
        "saved_mib": 3.0,
        "peak_mib": 4.0,
    }
    ours = row | {"name": "SBS search", "time_vs_fp32": 1.3, "time_vs_qat": 1.2, "saved_vs_fp32": 1.0}
    paths = row | {"name": "multi-path search", "time_vs_fp32": 4.0}
    rows = {"fp32": row, "modelopt": {"name": "ModelOpt QAT", "missing": "not measured: x"}, "sbs": ours}
    lines = step_report.section({"model": "net", "width": 8, "rows": rows | {"multi-path": paths}})
    (missing,) = [line for line in lines if "ModelOpt" in line]
    assert missing.count("|") == len(step_report.HEADER) + 1 and not any(c.isdigit() for c in missing)
    goals = "\n".join(line for line in lines if "goal" in line)
    assert goals.count(": met.") == 3 and goals.count(": missed.") == 1
    assert "3.08x" in goals
