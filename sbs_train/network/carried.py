"""The network that a searched model carries, so that whoever has the model can resume, fine-tune and export it.

The network goes where the model goes: into copies (an average of the weights, say), files and other devices.
"""

from typing import Any

from torch import nn

from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import Plan
from sbs_train.network.network import Network
from sbs_train.quant.clamping import Clamping
from sbs_train.quant.layers import sbs_layers

ATTRIBUTE, PLAN = "sbs_network", "sbs_plan"
WRAPPERS = ("module", "_orig_mod")
"""Where DistributedDataParallel, AveragedModel and torch.compile keep the model they wrap."""


def carry(network: Network) -> None:
    """Let the network's model carry it, and keep its clip values positive whatever trains it."""
    setattr(network.model, ATTRIBUTE, network)
    network.model.register_forward_pre_hook(Clamping(network.layers.values(), network.adds))


def settle(network: Network, plan: Plan) -> None:
    """Let the network's model carry the plan that its search ended with."""
    setattr(network.model, PLAN, plan)


def refuse_other(network: Network, plan: Plan) -> None:
    """SbsError for a plan of other bits or channels than the model's own search ended with; earlier copies take any."""
    own = vars(network.model).get(PLAN)
    if isinstance(own, Plan) and _choices(own) != _choices(plan):
        raise SbsError("the plan has other bits or channels than the model; give what its own Search.finish() returned")


def _choices(plan: Plan) -> list[object]:
    return [
        *((layer.name, layer.bits_w, layer.bits_a) for layer in plan.layers),
        *((group.id, group.kept) for group in plan.groups),
    ]


def refuse_searched(model: nn.Module) -> None:
    """SbsError for a model whose layers share bits already."""
    if next(iter(sbs_layers(model)), None) is not None:
        raise SbsError("this model was searched before; start from a float model")


def network_of(model: nn.Module) -> Network:
    """The network of a model that `sbs_train.Search` has changed, of a copy of the model, or of a wrapper around it.

    Raises:
        SbsError: there is none.
    """
    inner: Any = model
    while inner is not None:
        found = vars(inner).get(ATTRIBUTE)
        if isinstance(found, Network):
            return found
        inner = next((getattr(inner, name) for name in WRAPPERS if hasattr(inner, name)), None)
    raise SbsError(f"this {type(model).__name__} was not searched; give the model that sbs_train.Search got")
