"""What no exporter can follow is found before training, and said in one line."""

import pytest
import torch
from torch import nn

from sbs_train.example import Example
from sbs_train.inputs.exportable import export_problem

IMAGE = Example.of(torch.zeros(2, 3, 6, 6))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.c, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 5)

    def block(self, x):
        return self.c(x)

    def forward(self, x):
        return self.fc(self.block(torch.relu(self.stem(x))).mean((2, 3)))


class Branch(Network):
    def block(self, x):
        return self.c(x) if x.mean() > 0 else x[..., 2:, 2:]


class Repeats(Network):
    def block(self, x):
        for _ in range(int(x.abs().sum()) % 3):
            x = x * 2
        return self.c(x)


class Leaves(Network):
    """A number that NumPy computed would become a constant of the graph."""

    def block(self, x):
        return self.c(x) * float(x.detach().numpy().mean())


class Scripted(Network):
    def __init__(self):
        super().__init__()
        self.c = torch.jit.script(nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU()))


class Chooses(Network):
    """By what does not change: the mode, a shape, a setting."""

    wide = True

    def block(self, x):
        x = self.c(x) if self.wide and x.shape[-1] > 2 else x
        return nn.functional.dropout(x) if self.training else x


class Keeps(Network):
    def block(self, x):
        self.kept = self.c(x)
        return self.kept


@pytest.mark.parametrize("network", [Branch, Repeats, Leaves, Scripted])
def test_what_depends_on_values_or_is_scripted_is_refused_in_one_line(network):
    problem = export_problem(network(), IMAGE)
    assert "cannot export" in problem and "forward" in problem and "\n" not in problem


@pytest.mark.parametrize("network", [Network, Chooses, Keeps])
def test_what_can_be_exported_is_left_as_it_was(network):
    model = network().train()
    before = dict(model.__dict__)
    assert not export_problem(model, IMAGE)
    assert model.training and model.__dict__ == before
