"""What `profile-device` says about what it measured."""

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from sbs_deploy.measure.devices.table import device_table, summary
from sbs_train.contract.device import DeviceModel, HeldOut
from tests.sbs_deploy.devices import device_of


def device(scale: float = 1.0, **changes: Any) -> DeviceModel:
    made = device_of("onnxruntime", align=16)
    network = made.networks[0].model_copy(update={"scale": scale})
    return made.model_copy(update={"networks": [network], **changes})


@pytest.mark.parametrize("scale", [0.79, 1.26])
def test_a_scale_far_from_one_is_a_warning_of_one_line(scale: float) -> None:
    lines = summary(device(scale), ["none"])
    (warning,) = [line for line in lines if line.startswith("warning: ")]
    assert "the scale of none is not within 0.8 to 1.25" in warning and "larger --batch" in warning
    assert f"over the sum of its layers' times: none {scale}x" in "\n".join(lines)
    assert not any("warning" in line for line in summary(device(1.24), ["none"]))


def test_the_scale_is_in_the_table() -> None:
    text = StringIO()
    Console(file=text, width=200).print(device_table(device(0.625)))
    header, _, row = [line for line in text.getvalue().splitlines() if line.strip()]
    assert header.split()[-1] == "scale" and row.split()[-1] == "0.625x"


@pytest.mark.parametrize(("overhead_us", "words"), [(2.387, "2.4 us, taken out"), (None, "not known")])
def test_what_the_profiler_adds_is_said(overhead_us: float | None, words: str) -> None:
    assert f"what the profiler adds to a node: {words}" in summary(device(node_overhead_us=overhead_us), ["none"])


@pytest.mark.parametrize(("batch", "words"), [(1, "those of one image"), (8, "those of a batch of 8 images")])
def test_milliseconds_are_of_a_batch(batch: int, words: str) -> None:
    assert summary(device(batch=batch), ["none"])[0].endswith(words)


@pytest.mark.parametrize(
    ("points", "networks", "words"),
    [
        (0, 0, "no point was held out"),
        (66, 3, "layers 1.0% (median) and 2.0% (p90) of 66 points, whole networks from end to end 6.0% (median of 3)"),
        (0, 3, "whole networks from end to end 6.0% (median of 3)"),
    ],
)
def test_errors_are_of_what_was_held_out(points: int, networks: int, words: str) -> None:
    held = HeldOut(points=points, median_error=0.01, p90_error=0.02, networks=networks, network_error=0.06)
    lines = summary(device(held_out=held), ["none"])
    assert f"error at channels that were not used: {words}" in lines
