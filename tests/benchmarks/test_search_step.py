"""The comparison measures what it says: saved bytes against hand counts, and what the page says."""

import sys
from pathlib import Path

import pytest
import torch

# Benchmarks are scripts: they import each other from their own folder.
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import search_step
import step_measure
import step_methods

SETTING = step_measure.Setting(model="resnet20", width=8, image=8, batch=4, classes=10, device=torch.device("cpu"))


class SaveTwice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x, x.flatten())
        return x + 1

    @staticmethod
    def backward(ctx, grad):
        return grad


def method_of(model, x):
    return step_measure.method("m", "", "", model, SETTING, lambda index: model(x).sum())


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


@pytest.mark.parametrize("build", [step_methods.plain_qat, step_methods.sbs, step_methods.thresholds])
def test_methods_train(build):
    method = build(SETTING)
    before = [p.detach().clone() for p in method.model.parameters() if p.dim() > 1]
    step_measure.warm_up(method)
    after = [p for p in method.model.parameters() if p.dim() > 1]
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_paired_ratio_is_within_rounds():
    assert search_step.paired_ratio([2.0, 60.0, 4.0], [1.0, 30.0, 1.0]) == 2.0


def test_a_row_and_the_goals_it_meets():
    row = {
        "name": "FP32",
        "bits": "32/32",
        "note": "",
        "step_ms": [3.0, 1.0, 2.0],
        "time_vs_fp32": 1.0,
        "saved_mib": 3.0,
        "peak_mib": 4.0,
    }
    ours = row | {"name": "SBS search", "time_vs_fp32": 1.3, "time_vs_qat": 1.2, "saved_vs_fp32": 1.0}
    assert len(search_step.cells(row)) == len(search_step.HEADER.split(" | "))
    assert search_step.cells(ours)[2:6] == ["2.0", "1.0", "1.30x", "1.20x"]
    goals = "\n".join(search_step.goals({"fp32": row, "sbs": ours}))
    assert goals.count(": met.") == 2 and goals.count("1.20x, the goal is at most 1.15x: missed.") == 1
