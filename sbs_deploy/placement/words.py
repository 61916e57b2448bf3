"""A placement in sentences."""

from sbs_deploy.measure import units
from sbs_train.contract.placement import FloatLayer, Placement

NAMED = 5
"""Most layers named, those that save most first."""


def summary(placement: Placement) -> list[str]:
    """Sentences on what was chosen, against which controls, and what to ship."""
    if placement.mode == "plan":
        return []
    by_gain = sorted(placement.float_layers, key=lambda one: (one.float_ms or 0.0) - (one.int8_ms or 0.0))
    floats = ", ".join(_layer_words(one) for one in by_gain[:NAMED]) or "none"
    if len(by_gain) > NAMED:
        floats += f" and {len(by_gain) - NAMED} more"
    form = f"; {placement.form}" if placement.form else ""
    found = [
        f"{len(placement.float_layers)} of {placement.quantized_layers} planned layers in float: {floats}{form}",
        *(
            f"{units.times(one.speed)} the speed of {one.control} ({' to '.join(map(units.times, one.interval))}; "
            f"{units.milliseconds(placement.ms)}, control {units.milliseconds(one.ms)})"
            for one in placement.controls
        ),
    ]
    if not placement.finished:
        found.append(
            f"{placement.minutes:g} minutes were not enough to try everything; a longer build goes on from here"
        )
    if advice := ship_advice(placement):
        found.append(advice)
    return found


def ship_advice(placement: Placement) -> str | None:
    """A sentence on the control that should be shipped; None if the engine is fast enough."""
    if placement.ship is None:
        return None
    control = next(one for one in placement.controls if one.control == placement.ship)
    return (
        f"ship {placement.ship} in place of this engine, which runs at {control.speed:.2f}x its speed on this machine"
    )


def _layer_words(one: FloatLayer) -> str:
    if one.int8_ms is None or one.float_ms is None:
        return one.layer
    return f"{one.layer} (INT8 {units.milliseconds(one.int8_ms)}, float {units.milliseconds(one.float_ms)})"
