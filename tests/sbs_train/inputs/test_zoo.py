"""Networks from elsewhere: what is built, what is refused, and which weights arrive."""

import pytest
import torch
from torch import nn

from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import ModelSpec
from sbs_train.inputs import zoo
from sbs_train.inputs.models import build_model

FACTORY = """
import torch
from torch import nn
import neighbour

def small(num_classes):
    return nn.Sequential(nn.Conv2d(3, neighbour.WIDTH, 3), nn.Flatten(), nn.Linear(neighbour.WIDTH * 36, num_classes))

def fixed():
    return nn.Conv2d(3, 4, 1)

def broken():
    raise RuntimeError("no such layer")

def wrong():
    return "a network"
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "neighbour.py").write_text("WIDTH = 5\n")
    (tmp_path / "mine.py").write_text(FACTORY)
    return tmp_path / "mine.py"


def build(name, channels=3, classes=7, size=(32, 32)):
    return build_model(ModelSpec(name=name, arguments={"width": 1, "num_classes": classes}), channels, size=size)


def test_a_function_in_a_file_may_take_the_number_of_classes(file):
    assert build(f"{file}:small")(torch.zeros(2, 3, 8, 8)).shape == (2, 7)
    assert isinstance(build(f"{file}:fixed"), nn.Conv2d)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "torchvision:resnet19",
            "torchvision has no classifier or segmentation network resnet19; did you mean resnet18",
        ),
        ("torchvision:maskrcnn_resnet50_fpn", "torchvision has no classifier"),
        ("nowhere.py:small", "there is no file nowhere.py"),
        ("{file}:missing", "has no function missing"),
        ("{file}:broken", "cannot be built: RuntimeError: no such layer"),
        ("{file}:wrong", "returned str, not a torch.nn.Module"),
        ("resnet21", "unknown model resnet21; choose one of"),
    ],
)
def test_what_cannot_be_built_says_why(file, name, said):
    with pytest.raises(SbsError) as error:
        build(name.format(file=file))
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["torchvision:resnet18", "torchvision:mobilenet_v3_small", "torchvision:vit_b_16"])
def test_images_of_one_channel_and_another_size(name):
    network = build(name, channels=1).eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 1, 32, 32)).shape == (1, 7)


def test_auxiliary_classifiers_are_left_out():
    assert build("torchvision:googlenet").train()(torch.zeros(2, 3, 64, 64)).shape == (2, 7)


def test_published_weights_arrive_but_for_another_classifier(monkeypatch):
    published = build("torchvision:resnet18", classes=1000).state_dict()
    monkeypatch.setattr(zoo, "_published", lambda library, name: published)
    network = build("torchvision:resnet18", classes=7)
    assert zoo.load_published(network, "torchvision:resnet18") == ["fc.weight", "fc.bias"]
    own = network.state_dict()
    assert all(torch.equal(own[name], value) for name, value in published.items() if not name.startswith("fc."))


@pytest.mark.parametrize("name", ["resnet20", "mine.py:small"])
def test_nobody_publishes_weights_for_a_network_of_ours(name):
    with pytest.raises(SbsError, match="nobody publishes weights"):
        zoo.load_published(nn.Linear(1, 1), name)


def test_weights_of_another_network_are_refused(monkeypatch):
    monkeypatch.setattr(zoo, "_published", lambda library, name: {f"x{i}": torch.zeros(1) for i in range(8)})
    with pytest.raises(SbsError, match="another network"):
        zoo.load_published(nn.Linear(1, 1), "torchvision:resnet18")
