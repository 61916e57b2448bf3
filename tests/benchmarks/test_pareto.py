"""The benchmark of the search: what it reports, and that the search keeps up with the best uniform plan."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import pareto
import pareto_report


def job(method, work):
    return pareto.Job(
        model="resnet20",
        width=4,
        seed=0,
        method=method,
        pretrain_steps=400,
        steps=300,
        search_steps=50,
        device="cpu",
        compile=False,
        work=work,
        data_dir=None,
    )


def point(method, reduction, top1, seed=0):
    return {
        "network": "resnet20-w4",
        "seed": seed,
        "method": method,
        "reduction": reduction,
        "kept_channels": 1.0,
        "steps": [100, 50],
        "top1": top1,
        "loss": 0.3,
        "machine": {"device": "a CPU", "torch": "2"},
    }


def test_a_point_is_compared_with_the_best_uniform_plan_that_is_as_cheap(tmp_path):
    points = [point("W4A4", 62, 92.0), point("W2A4", 120, 90.0), point("W4A2", 120, 88.0)]
    points += [point("SBS 100x", 101, 90.5), point("SBS 100x", 103, 91.5, seed=1)]
    pareto_report.write_report(points, tmp_path / "results.json")
    text = (tmp_path / "results.md").read_text()
    assert "SBS 100x minus W2A4 (120x), the best uniform plan as cheap as it: +1.00 points" in text
    assert "| SBS 100x | 102.0x |  | 91.00 | 1.00 |" in text and "| W2A4 | 120.0x |  | 90.00 | one seed |" in text
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_search_is_not_worse_than_w2a4_at_its_bops(tmp_path):
    uniform, searched = job("W2A4", tmp_path), job("SBS 116x", tmp_path)
    pareto.pretrained(uniform)
    for each in (uniform, searched):
        pareto.run_once(each)
    results = [pareto.read_json(each.result) for each in (uniform, searched)]
    assert results[1]["reduction"] >= 116 > 0.99 * results[0]["reduction"]
    # 2,000 validation images: one standard deviation of the difference of two such networks is about 0.7 points.
    assert results[1]["val_top1"] >= results[0]["val_top1"] - 1.5
