"""A made-up device on which the layers of any network cost something, and the file it would be measured into."""

from sbs_train.contract.device import DeviceModel
from sbs_train.contract.latency import device_cost
from sbs_train.quant.space import SearchSpace


def device_for(
    network, *, ms_per_mac=1e-6, start_ms=0.01, float_factor=3.0, depthwise_factor=None, switch_us=0.0, switch_ns=0.0
):
    """Milliseconds in proportion to MACs, plus `start_ms` a layer; float takes a factor of INT8's, or another one.

    Every layer follows the one before it in the network's order.
    """
    sizes = {group.id: group.size for group in network.topology.groups}
    surfaces, layers, totals, before = [], [], [0.0, 0.0], None
    for name, shape in network.topology.layers.items():
        size_in, size_out = sizes[shape.group_in], sizes[shape.group_out]
        depthwise = name in network.layers and network.layers[name].kind == "depthwise"
        channels_in, channels_out = _steps(size_in), [size_out] if depthwise else _steps(size_out)
        ms = [
            [
                start_ms + ms_per_mac * shape.macs * i / size_in * (1 if depthwise else o / size_out)
                for o in channels_out
            ]
            for i in channels_in
        ]
        factor = depthwise_factor if depthwise and depthwise_factor else float_factor
        surface = {
            "kind": "depthwise" if depthwise else "conv",
            "shape": name,
            "channels_in": channels_in,
            "channels_out": channels_out,
            "ms": ms,
            "float_ms": [[factor * one for one in row] for row in ms],
        }
        totals = [total + one[-1][-1] for total, one in zip(totals, (ms, surface["float_ms"]), strict=True)]
        layers.append({"name": name, "follows": before, "surface": len(surfaces), "elements": 100 * size_in})
        surfaces.append(surface)
        before = name
    return DeviceModel.model_validate(
        {
            "schema_version": 2,
            "created": "",
            "target": "onnxruntime",
            "device": "paper machine",
            "precision": "int8",
            "threads": 1,
            "batch": 1,
            "versions": {},
            "machine": {},
            "surfaces": surfaces,
            "networks": [
                {
                    "model": network.spec.name,
                    "input": list(network.inputs[0].sample),
                    "layers": layers,
                    "rest_ms": 0.0,
                    "switch_us": switch_us,
                    "switch_ns": switch_ns,
                    "fp32_ms": totals[1],
                    "quantized_ms": totals[0],
                }
            ],
            "held_out": {"networks": 0, "median_error": 0.0, "worst_error": 0.0},
        }
    )


def space_on(network, device):
    """What a search decides in a network, with its cost in the milliseconds of a device."""
    sizes = {group.id: group.size for group in network.topology.groups}
    shapes = network.topology.layers
    layers = {name: (sizes[shape.group_in], sizes[shape.group_out]) for name, shape in shapes.items()}
    measured = device.network_of(layers, network.inputs[0].sample)
    return SearchSpace(
        network.layers,
        network.topology.groups,
        network.config.search,
        fixed=network.topology.fixed,
        prune=True,
        quantize=True,
        device=device_cost(device, measured, network.layers),
    )


def _steps(size):
    return sorted({max(1, size // 4), max(1, size // 2), size})
