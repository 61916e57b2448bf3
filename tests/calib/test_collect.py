"""What layers take in, against running the layers by hand."""

import torch
from torch import nn

from calib.collect import collect_inputs


def test_inputs_of_every_layer_are_watched_in_eval_mode():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    batches = [torch.randn(16, 4) for _ in range(3)]
    model.train()
    samples = collect_inputs(model, {"first": model[0], "second": model[3]}, batches)
    assert model.training and int(model[1].num_batches_tracked) == 0
    model.eval()
    hidden = model[:3](torch.cat(batches))
    assert samples["first"].signed and not samples["second"].signed
    assert samples["second"].maximum == hidden.max().item()
    assert not model[0]._forward_pre_hooks


class ByName(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x):
        return self.fc(input=x)


def test_a_layer_that_is_called_by_name_is_watched():
    model = ByName()
    samples = collect_inputs(model, {"fc": model.fc}, [torch.tensor([[1.0, 2.0, 3.0]])])
    assert samples["fc"].maximum == 3.0
