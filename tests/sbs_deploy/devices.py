"""A device.json of which only the target and its alignment matter."""

from sbs_train.contract.device import DeviceModel, HeldOut, NetworkCost, Step, Surface


def device_of(target: str, *, align: int) -> DeviceModel:
    """One layer, measured nowhere."""
    surface = Surface(kind="conv", shape="3x3", channels_in=[3], channels_out=[16], ms=[[1.0]])
    step = Step(name="conv1", surface=0, follows=None)
    network = NetworkCost(
        model="none", input=[3, 8, 8], layers=[step], others=[], fp32_ms=2.0, quantized_ms=1.0, scale=1.0
    )
    return DeviceModel(
        schema_version=1,
        created="2026-01-02T03:04:05+00:00",
        target=target,
        device="cpu of a test",
        precision="int8",
        align=align,
        threads=1,
        batch=1,
        versions={},
        machine={},
        surfaces=[surface],
        networks=[network],
        held_out=HeldOut(points=0, median_error=0.0, p90_error=0.0),
    )
