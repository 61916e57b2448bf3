"""The whole job on real data, as a user runs it: float model → plan → engines → validation → numbers → report."""

import json
from pathlib import Path

import pytest

from sbs_deploy import cli as deploy
from sbs_train import cli as train
from sbs_train.contract.plan import load_plan
from sbs_train.inputs.data.builtin import FASHION_MNIST_DEBIAN
from tests.sbs_deploy.report.chromium import assert_sound, open_tab

pytestmark = pytest.mark.slow


def last_line(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def built(run: Path, capsys):
    """Both engines, validated; returns the validation and the bench rows."""
    assert deploy.main(["build", str(run), "--engine", "int8", "--backend", "tensorrt-rtx"]) == 0
    assert deploy.main(["build", str(run), "--engine", "int8", "--backend", "onnxruntime", "--placement", "plan"]) == 0
    capsys.readouterr()
    assert deploy.main(["validate", str(run), "--json"]) == 0
    validation = last_line(capsys)
    assert deploy.main(["bench", str(run), "--rounds", "3", "--json"]) == 0
    return validation, last_line(capsys)


def test_the_default_recipe_keeps_its_accuracy_at_60x(tmp_path, capsys):
    run = tmp_path / "digits"
    assert train.main(["--target", "60x", "--out", str(run), "--json"]) == 0
    result = last_line(capsys)
    assert 57 <= result["reduction"] <= 63
    assert result["metrics"]["finetune"]["top1"] >= result["metrics"]["fp32"]["top1"] - 1
    validation, rows = built(run, capsys)
    one_image = 100 / 360 + 1e-9
    assert validation["passed"] and validation["codes_equal"]
    assert validation["top1_agreement"] >= 100 - one_image and validation["agreement_integer"] >= 99
    assert abs(validation["top1_integer"] - validation["top1_pytorch"]) <= one_image
    timed = {row["precision"]: row for row in rows if row["backend"] == "onnxruntime" and row["error"] is None}
    assert timed["int8"]["latency_p50_ms"] > 0 and timed["int8"]["speedup_interval"][0] > 0
    assert deploy.main(["report", str(run)]) == 0
    assert "report.html" in capsys.readouterr().out
    page = run / "deploy" / "report.html"
    with open_tab() as tab:
        for width in (1280, 390):
            tab.open(page, width=width)
            assert_sound(tab, page)
        assert tab.run("document.querySelectorAll('#layers-1 tbody tr').length") == 22


@pytest.mark.skipif(not FASHION_MNIST_DEBIAN.is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_fashion_mnist_agrees_on_all_test_images(tmp_path, capsys):
    run = tmp_path / "fashion"
    short = (
        "--width 8 --pretrain.epochs 3 --pretrain.steps-per-epoch 100 --search.epochs 3 --search.steps-per-epoch 60 "
        "--finetune.epochs 2 --finetune.steps-per-epoch 60"
    )
    assert train.main(["fashion-mnist-resnet20", *short.split(), "--out", str(run), "--json"]) == 0
    assert 57 <= last_line(capsys)["reduction"] <= 63
    validation, _ = built(run, capsys)
    assert validation["samples"] == 10_000 and validation["codes_equal"]
    assert validation["top1_agreement"] >= 99.9
    assert validation["agreement_integer"] >= 99
    assert abs(validation["top1_integer"] - validation["top1_pytorch"]) <= 0.2


def test_mobilenetv2_is_pruned_quantized_and_deployed(tmp_path, capsys):
    run = tmp_path / "mobilenetv2"
    # No 2-bit activations: so briefly trained, 53 layers of them turn one rounding in float32 into other answers.
    short = "--pretrain.epochs 6 --search.epochs 3 --finetune.epochs 6 --search.bits-activations 4 8 --target 50x"
    assert train.main(["--model", "mobilenetv2", *short.split(), "--out", str(run), "--json"]) == 0
    result = last_line(capsys)
    assert 47 <= result["reduction"] <= 53
    assert result["metrics"]["finetune"]["top1"] > 90
    plan = load_plan(run / "plan.json")
    # Linear bottlenecks are signed, what comes out of a ReLU6 is not.
    expansions = {f"features.{block}.conv.0.0" for block in range(2, 18)}
    assert {row.name for row in plan.layers if row.signed_a} == {"features.0.0", *expansions, "features.18.0"}
    assert {group.id for group in plan.groups if group.prunable} == expansions
    assert any(len(group.kept) < group.size for group in plan.groups)
    assert len(plan.adds) == 10 and all(add.signed_lhs and add.signed_rhs for add in plan.adds)
    validation, _ = built(run, capsys)
    assert validation["passed"] and validation["codes_equal"]
    assert validation["agreement_integer"] >= 99
