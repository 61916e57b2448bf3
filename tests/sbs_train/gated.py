"""A block whose expanded channels pass a gate, for every way of writing one that the tests know."""

import torch
import torch.nn.functional as F
from torch import nn

KINDS = {
    "squeeze": True,
    "squeeze linear": True,
    "hard sigmoid": True,
    "residual gate": True,
    "spatial": False,  # one channel that all are multiplied by: torch-pruning takes it for theirs
    "gated": True,
    "gated twice": True,
    "efficient": False,  # a convolution across channels
    "shared": True,  # of CBAM: its layers run twice
    "split": None,  # torch-pruning may follow a chunk or not
    "two branches": False,  # which are added
    "maximum": False,
}
"""By name, whether the expanded channels may be pruned; None where either is right, if it is exact."""


class GatedBlock(nn.Module):
    """Expand, gate, project, with a shortcut."""

    def __init__(self, channels, kind):
        super().__init__()
        hidden = 2 * channels
        self.kind = kind
        self.expand = nn.Conv2d(channels, 2 * hidden if kind == "split" else hidden, 1)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, 1, 1, groups=hidden)
        linear = kind == "squeeze linear"
        self.fc1 = nn.Linear(hidden, 4) if linear else nn.Conv2d(hidden, 4, 1)
        self.fc2 = nn.Linear(4, hidden) if linear else nn.Conv2d(4, hidden, 1)
        self.spatial, self.along = nn.Conv2d(hidden, 1, 3, 1, 1), nn.Conv1d(1, 1, 3, 1, 1)
        self.other, self.third = nn.Conv2d(channels, hidden, 1), nn.Conv2d(channels, hidden, 1)
        self.project = nn.Conv2d(hidden, channels, 1)

    def forward(self, x):
        return x + self.project(self.gate(self.expand(x), x))

    def gate(self, y, x):
        kind = self.kind
        if kind == "split":
            a, b = y.chunk(2, 1)
            return a * b.sigmoid()
        y = F.relu(self.depthwise(F.relu(y)))
        if kind == "gated":
            return y * F.silu(self.other(x))
        if kind == "gated twice":
            return y * self.other(x).tanh() * torch.sigmoid(self.third(x))
        if kind == "two branches":
            return F.relu(y + self.other(x))
        if kind == "maximum":
            return torch.maximum(y, self.other(x))
        if kind == "spatial":
            return y * self.spatial(y).sigmoid()
        mean = y.mean((2, 3), keepdim=True)
        if kind == "efficient":
            return y * self.along(mean.flatten(2).transpose(1, 2)).transpose(1, 2)[..., None].sigmoid()
        if kind == "shared":
            return y * (self.fc2(F.relu(self.fc1(mean))) + self.fc2(F.relu(self.fc1(y.amax((2, 3), True))))).sigmoid()
        g = self.fc2(F.relu(self.fc1(mean.flatten(1) if kind == "squeeze linear" else mean)))
        if kind == "squeeze linear":
            return y * g.sigmoid()[:, :, None, None]
        if kind == "hard sigmoid":
            return F.relu6(g + 3) / 6 * y
        return y + y * g.tanh() if kind == "residual gate" else g.sigmoid() * y


class Gated(nn.Module):
    """A stem, two such blocks and a head."""

    def __init__(self, kind, classes=5):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.blocks = nn.Sequential(GatedBlock(8, kind), GatedBlock(8, kind))
        self.head = nn.Linear(8, classes)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))
