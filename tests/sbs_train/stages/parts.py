"""A stage's parts small enough to save a thousand times: a network, its optimizers, the best snapshot, the history."""

import copy
from types import SimpleNamespace

import torch
from torch import nn

from sbs_train.contract import rundir
from sbs_train.contract.config import TrainConfig
from sbs_train.inputs.tensors import fitting_state
from sbs_train.stages.checkpoint import Checkpoint
from sbs_train.stages.loop import Best
from sbs_train.stages.ranks import ALONE
from sbs_train.stages.search import History


def parts_of(seed):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    adam, sgd = torch.optim.Adam(net[0].parameters()), torch.optim.SGD(net[1].parameters(), lr=0.1, momentum=0.9)
    net(torch.randn(4, 3)).square().sum().backward()
    adam.step()
    sgd.step()
    best = Best(lambda payload: fitting_state("best", payload, net.state_dict()))
    best.offer(50.0, 1, lambda: copy.deepcopy(net.state_dict()))
    history = History()
    history.rows.append({"epoch": 0, "loss": 1.0, "lambda": 0.5, "flips": 2.0, "bits_w": {"a": 8}, "margins": {}})
    return {"model": net, "optimizer0": adam, "optimizer1": sgd, "best": best, "history": history}


def checkpoint_in(path, seed):
    ctx = SimpleNamespace(run=rundir.create_run(path), ranks=ALONE, config=TrainConfig())
    return Checkpoint(ctx, "search", parts_of(seed), "these")
