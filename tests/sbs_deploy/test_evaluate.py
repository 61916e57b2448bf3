"""`sbs-deploy evaluate`: the task's metrics of the engine, beside those of the network that it was made of."""

import json

import pytest

import sbs_deploy
from sbs_deploy.cli import main
from sbs_train import cli
from tests.sbs_train.stages.test_run import SHORT


@pytest.mark.slow  # a training and a build
def test_the_engine_itself_is_evaluated(tmp_path, capsys):
    run = tmp_path / "run"
    assert cli.main([*SHORT, "--out", str(run)]) == 0
    assert main(["evaluate", str(run), "--backend", "onnxruntime"]) == 2
    assert "sbs-deploy build" in capsys.readouterr().err
    exact = ["--legalise", "exact", "--outputs", "none", "--placement", "plan"]
    assert main(["build", str(run), "--engine", "int8", "--backend", "onnxruntime", *exact]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(run), "--json"]) == 0  # the only engine
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    trained = json.loads((run / "metrics.json").read_text())["finetune"]
    assert list(found) == list(trained) and found["images"] == 360
    assert abs(found["top1"] - trained["top1"]) <= 1 and abs(found["loss"] - trained["loss"]) < 0.02
    assert sbs_deploy.evaluate(run, backend="onnxruntime") == found
