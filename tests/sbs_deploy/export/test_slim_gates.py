"""Networks whose channels pass gates lose them exactly: slim against masked, in double, whatever is pruned."""

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sbs_deploy.export.slim import slim_network
from sbs_train.contract.config import TrainConfig
from tests.sbs_deploy.export.networks import SMALL_INPUT, random_network
from tests.sbs_deploy.export.quantized import run_quantized
from tests.sbs_train.gated import KINDS, Gated

CONFIG = TrainConfig(model="resnet20", width=4)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(kind=st.sampled_from(sorted(KINDS)), seed=st.integers(0, 1000))
def test_a_pruned_gate_computes_what_the_masked_one_does(kind, seed):
    torch.manual_seed(seed)
    network, plan = random_network(Gated(kind), seed, config=CONFIG, input=SMALL_INPUT)
    if KINDS[kind]:
        assert any(group.id == "blocks.0.expand" and group.prunable for group in plan.groups)
    network.model.double()
    slim = slim_network(network, plan)
    slim.model.double()
    x = torch.randn(4, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        torch.testing.assert_close(run_quantized(slim, x), network.model(x), rtol=1e-6, atol=1e-6)
