"""A made-up device on which the layers of any network cost something, and the file it would be measured into."""

from sbs_train.contract.device import DeviceModel
from sbs_train.contract.latency import device_cost
from sbs_train.quant.space import SearchSpace


def device_for(network, *, align=1, ms_per_mac=1e-6, start_ms=0.01, fp32_factor=3.0, others=()):
    """Milliseconds in proportion to MACs, plus `start_ms` a layer; `others` name layers whose outputs are added to."""
    sizes = {group.id: group.size for group in network.topology.groups}
    surfaces, layers, total = [], [], 0.0
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
        total += ms[-1][-1]
        kind = "depthwise" if depthwise else "conv"
        surface = {"kind": kind, "shape": name, "channels_in": channels_in, "channels_out": channels_out, "ms": ms}
        layers.append({"name": name, "follows": None, "surface": len(surfaces)})
        surfaces.append(surface)
    rest = []
    for name in others:
        size = sizes[network.topology.layers[name].group_out]
        steps = _steps(size)
        ms = [[start_ms * channels / size] for channels in steps]
        total += start_ms
        surface = {"kind": "Add", "shape": "", "channels_in": steps, "channels_out": [size], "ms": ms}
        rest.append({"name": f"add.{name}", "follows": name, "surface": len(surfaces)})
        surfaces.append(surface)
    input = network.input
    return DeviceModel.model_validate(
        {
            "schema_version": 1,
            "created": "",
            "target": "onnxruntime",
            "device": "paper machine",
            "precision": "int8",
            "align": align,
            "threads": 1,
            "batch": 1,
            "versions": {},
            "machine": {},
            "surfaces": surfaces,
            "networks": [
                {
                    "model": network.spec.name,
                    "input": [input.channels, input.height, input.width],
                    "layers": layers,
                    "others": rest,
                    "fp32_ms": fp32_factor * total,
                    "quantized_ms": total,
                    "scale": 1.0,
                }
            ],
            "held_out": {"points": 0, "median_error": 0.0, "p90_error": 0.0},
        }
    )


def space_on(network, device):
    """What a search decides in a network, with its cost in the milliseconds of a device."""
    sizes = {group.id: group.size for group in network.topology.groups}
    shapes = network.topology.layers
    layers = {name: (sizes[shape.group_in], sizes[shape.group_out]) for name, shape in shapes.items()}
    measured = device.network_of(layers, (network.input.channels, network.input.height, network.input.width))
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
