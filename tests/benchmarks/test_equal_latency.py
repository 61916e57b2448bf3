"""Rankings keep the channels that matter, sizes are found by measured times, and the page compares seed by seed."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

import equal_latency
import equal_methods

from sbs_train.contract.config import SearchConfig, TrainConfig
from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import ModelSpec
from sbs_train.inputs.models import build_model
from sbs_train.stages.weights import save_weights

DEAD = [1, 2, 5, 6]


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> TrainConfig:
    """A ResNet-20 of width 8, half of whose channels inside the first block compute nothing."""
    model = build_model(ModelSpec(name="resnet20", arguments={"width": 8, "num_classes": 10}), 1)
    with torch.no_grad():
        for tensor in (model.layer1[0].conv1.weight, model.layer1[0].bn1.weight, model.layer1[0].bn1.bias):
            tensor[DEAD] = 0
        model.layer1[0].conv2.weight[:, DEAD] = 0
    weights = tmp_path_factory.mktemp("weights") / "fp32.safetensors"
    save_weights(model.state_dict(), weights)
    search = SearchConfig(prune="coupled")
    return TrainConfig(model="resnet20", width=8, data="digits", weights=weights, search=search)


@pytest.mark.parametrize("method", equal_methods.RANKINGS)
def test_channels_that_compute_nothing_go_first(config, method, monkeypatch):
    monkeypatch.setattr(equal_methods, "IMAGES", 32)
    kept = equal_methods.Ranking(method, config, 2).kept(0.5)
    alive = kept["layer1.0.conv1"]
    assert not set(alive) & set(DEAD) and all(len(channels) % 2 == 0 for channels in kept.values())
    assert "conv1" in kept, "residual streams are pruned as well"
    if method == "uniform":
        assert {len(kept[name]) for name in kept if name.startswith("layer1")} == {4} and len(kept["conv1"]) == 4


def test_the_hessian_is_the_mean_of_squared_gradients_of_single_images():
    model = nn.Linear(2, 2, bias=False)
    x_NC, y_N = torch.tensor([[1.0, 2.0], [3.0, -1.0]] * 8), torch.tensor([0, 1] * 8)
    found = equal_methods._gradients("hessian", model, x_NC, y_N)["weight"]
    expected = torch.zeros(2, 2)
    for x_C, y in zip(x_NC[:2], y_N[:2], strict=True):
        # of cross-entropy after a linear layer: (softmax - one-hot) times the input
        off_O = torch.softmax(model.weight.detach() @ x_C, 0) - torch.eye(2)[y]
        expected += torch.outer(off_O, x_C) ** 2 / 2
    torch.testing.assert_close(found, expected)


@pytest.fixture
def sizes(monkeypatch):
    """Rankings and engines of a device that takes time in proportion to what is kept, in steps of 0.1."""
    ranking = SimpleNamespace(kept=lambda ratio: {"group": list(range(round(100 * (1 - ratio))))})
    monkeypatch.setattr(equal_latency, "Ranking", lambda *_: ranking)

    def probed(job, counts, make):
        return -(-int(counts.partition(":")[2]) // 10) / 10

    monkeypatch.setattr(equal_latency, "probed", probed)
    return lambda allowed: equal_latency.kept_within(
        SimpleNamespace(method="taylor", round_to=1, run="run"), TrainConfig(), allowed
    )


@pytest.mark.parametrize(("allowed", "least", "most"), [(0.7, 60, 70), (0.75, 60, 70), (0.55, 40, 50), (1.0, 90, 100)])
def test_the_largest_size_that_is_fast_enough(sizes, allowed, least, most):
    assert least < len(sizes(allowed)["group"]) <= most


def test_no_size_is_fast_enough(sizes):
    with pytest.raises(SbsError, match="no plan of"):
        sizes(0.05)


def cell(method: str, seed: int, top1: float) -> dict[str, object]:
    job = {"out": "runs/x", "model": "resnet20", "backend": "openvino", "batch": 1, "budget": 0.75}
    steps = {"pretrain_steps": 8000, "steps": 2000, "batch_size": 64}
    return {**job, **steps, "method": method, "seed": seed, "top1": top1, "time": 0.75}


def test_the_page_compares_seed_by_seed():
    cells = [cell("ours", 0, 90.0), cell("ours", 1, 91.0), cell("taylor", 0, 89.0), cell("taylor", 1, 90.8)]
    text = "\n".join(equal_latency.page([*cells, cell("narrower", 2, 89.5)]))
    assert "## resnet20, openvino, batch 1, 0.75 of dense INT8's time" in text
    assert "| ours | 90.50 | 90.00, 91.00 | 0.750, 0.750 |  |" in text
    assert "| taylor | 89.90 | 89.00, 90.80 | 0.750, 0.750 | +0.60 ± 0.57 |" in text
    assert "| narrower | 89.50 | 89.50 | 0.750 | – |" in text


@pytest.mark.parametrize(("steps", "size", "found"), [(8000, 800, (10, 800)), (10, 800, (1, 10)), (500, 200, (2, 250))])
def test_steps_as_epochs(steps, size, found):
    assert tuple(equal_latency.epochs(steps, size).values()) == found
