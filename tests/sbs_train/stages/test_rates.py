"""Learning rates by hand arithmetic, and the two optimizers against torch's own on the same network."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sbs_train.contract.config import FinetuneConfig, PretrainConfig, SearchConfig
from sbs_train.contract.errors import SbsError
from sbs_train.stages.rates import constant, cosine, optimizer_of, schedule, warmed_up
from tests.sbs_train.small import small_network


def test_the_rate_rises_along_a_line_and_falls_along_a_cosine():
    shape = schedule(PretrainConfig(epochs=10, warmup=2))
    assert [shape(f) for f in (0, 0.1, 0.2)] == pytest.approx([0.01, 0.505, 1.0])
    assert shape(0.6) == pytest.approx(0.5) and shape(1.0) == pytest.approx(0)


@given(st.floats(0, 1))
def test_without_a_warm_up_the_shapes_are_as_they_were(fraction):
    assert schedule(PretrainConfig(epochs=7))(fraction) == cosine(fraction)
    assert warmed_up(SearchConfig(epochs=7), constant)(fraction) == 1
    stairs = schedule(PretrainConfig(epochs=4, milestones=(1, 3)))(fraction)
    assert stairs == pytest.approx(0.1 ** int(np.searchsorted([0.25, 0.75], fraction + 1e-12, side="right")))


def test_a_warm_up_that_never_ends_is_refused():
    with pytest.raises(SbsError, match=r"--finetune\.warmup 5"):
        FinetuneConfig(epochs=5, warmup=5).check("--finetune.")
    FinetuneConfig(epochs=0, warmup=5).check()


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_matrices_decay_and_clip_values_have_a_rate_of_their_own(name):
    network = small_network()
    config = FinetuneConfig(optimizer=name, lr=0.1, momentum=0.8, weight_decay=0.2)
    optimizer = optimizer_of(network, config, 0.01)
    groups = optimizer.param_groups
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(0.1, 0.2), (0.1, 0.0), (0.01, 0.0)]
    assert sum(len(group["params"]) for group in groups) == len(list(network.model.parameters()))
    assert len(optimizer_of(network, config, None).param_groups) == 2
    weight = groups[0]["params"][0]
    ours = weight.detach().clone().requires_grad_(True)
    kinds = {
        "sgd": lambda: torch.optim.SGD([ours], lr=0.1, momentum=0.8, nesterov=True, weight_decay=0.2),
        "adamw": lambda: torch.optim.AdamW([ours], lr=0.1, betas=(0.8, 0.999), weight_decay=0.2),
    }
    reference = kinds[name]()
    for step in range(3):
        gradient = torch.randn(weight.shape, generator=torch.Generator().manual_seed(step))
        weight.grad, ours.grad = gradient.clone(), gradient.clone()
        optimizer.step(), reference.step()
    assert torch.equal(weight, ours)
