"""A device.json of which only the target matters."""

from sbs_train.contract.device import DeviceModel, HeldOut, NetworkCost, Step, Surface


def device_of(target: str) -> DeviceModel:
    """One layer, measured nowhere."""
    surface = Surface(kind="conv", shape="3x3", channels_in=[3], channels_out=[16], ms=[[1.0]], float_ms=[[2.0]])
    step = Step(name="conv1", surface=0, follows=None, elements=3 * 8 * 8)
    network = NetworkCost(
        model="none",
        input=[3, 8, 8],
        layers=[step],
        rest_ms=0.0,
        switch_us=0.0,
        switch_ns=0.0,
        fp32_ms=2.0,
        quantized_ms=1.0,
    )
    return DeviceModel(
        schema_version=2,
        created="2026-01-02T03:04:05+00:00",
        target=target,
        device="cpu of a test",
        precision="int8",
        threads=1,
        batch=1,
        versions={},
        machine={},
        surfaces=[surface],
        networks=[network],
        held_out=HeldOut(networks=0, median_error=0.0, worst_error=0.0),
    )
