"""Networks with weights that have no deviation, quantized to 8 bits: as good as in float."""

import pytest

from sbs_train.contract import rundir
from sbs_train.contract.config import FinetuneConfig, PretrainConfig, SearchConfig, TrainConfig
from sbs_train.stages.train import train

pytestmark = pytest.mark.slow

NETWORK = """
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(1, 1, 1)
        self.c, self.n = nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.mean = nn.Conv2d(16, 16, 2, 2, groups=16, bias=False)
        self.d, self.m = nn.Conv2d(16, 16, 3, 1, 1), nn.BatchNorm2d(16)
        self.fc = nn.Linear(1024, 10)
        nn.init.ones_(self.one.weight)
        nn.init.constant_(self.mean.weight, 0.25)
        self.mean.weight.requires_grad_(False)
        nn.init.zeros_(self.m.weight)
        nn.init.zeros_(self.fc.weight)
    def forward(self, x):
        y = self.mean(self.n(self.c(self.one(x))).relu())
        return self.fc((y + self.m(self.d(y))).relu().flatten(1))
"""


@pytest.mark.parametrize("grid", ["int8", "paper"])
def test_averaging_filters_single_weights_and_heads_of_zero(tmp_path, grid):
    (tmp_path / "odd.py").write_text(NETWORK)
    config = TrainConfig(
        model=f"{tmp_path}/odd.py:Net",
        device="cpu",
        batch_size=64,
        target="2x",
        grid=grid,
        pretrain=PretrainConfig(epochs=2, lr=0.05),
        search=SearchConfig(epochs=0),
        finetune=FinetuneConfig(epochs=0),
    )
    train(config, tmp_path / "run")
    metrics = rundir.read_json(tmp_path / "run" / "metrics.json")
    assert metrics["fp32"]["top1"] > 85
    assert metrics["finetune"]["top1"] > metrics["fp32"]["top1"] - 3


def test_the_same_network_searches_from_a_head_of_zero(tmp_path):
    (tmp_path / "odd.py").write_text(NETWORK)
    config = TrainConfig(
        model=f"{tmp_path}/odd.py:Net",
        device="cpu",
        batch_size=64,
        target="20x",
        pretrain=PretrainConfig(epochs=0),
        search=SearchConfig(epochs=2, lr=0.05),
        finetune=FinetuneConfig(epochs=1),
    )
    train(config, tmp_path / "run")
    assert rundir.read_json(tmp_path / "run" / "metrics.json")["finetune"]["top1"] > 70
