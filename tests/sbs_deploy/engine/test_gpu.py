"""The device layer and an engine on a real GPU."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from sbs_deploy.engine.device import Device, open_device
from sbs_deploy.engine.onnxruntime import OnnxRuntimeEngine
from sbs_deploy.engine.tensorrt import BatchProfile, build_tensorrt
from sbs_deploy.engine.trt_runtime import TensorRTEngine
from sbs_deploy.targets import TENSORRT_RTX, import_problem
from sbs_train.contract.errors import SbsError
from tests.sbs_deploy.graphs import IMAGE, qdq_model

pytestmark = pytest.mark.gpu


@pytest.fixture
def device() -> Iterator[Device]:
    try:
        opened = open_device()
    except SbsError as error:
        pytest.skip(str(error))
    with opened:
        yield opened


def test_a_round_trip_through_device_memory(device: Device) -> None:
    sent = np.arange(1000, dtype=np.float32)
    received = np.zeros_like(sent)
    address = device.allocate(sent.nbytes)
    device.upload(address, sent)
    device.download(received, address)
    np.testing.assert_array_equal(received, sent)


def test_events_are_ordered(device: Device) -> None:
    start, end = device.record(), device.record()
    device.synchronize()
    assert device.elapsed_ms(start, end) >= 0


@pytest.mark.skipif(import_problem(TENSORRT_RTX) is not None, reason="needs tensorrt-rtx")
def test_an_rtx_engine_agrees_with_onnx_runtime(tmp_path: Path) -> None:
    source = tmp_path / "model.trt.onnx"
    onnx.save(qdq_model("trt"), source)
    built = build_tensorrt(
        source,
        tmp_path / "model.int8.tensorrt-rtx.engine",
        target=TENSORRT_RTX,
        precision="int8",
        made_from={},
        profile=BatchProfile(opt=4, max=8),
    )
    images = np.random.default_rng(0).standard_normal((4, *IMAGE)).astype(np.float32)
    with OnnxRuntimeEngine(source, precision="int8", optimization="none") as reference:
        expected = reference.run(images)
    try:
        engine = TensorRTEngine(built.path, target=TENSORRT_RTX, precision="int8")
    except SbsError as error:
        pytest.skip(f"this chip is not accepted: {error}")
    with engine:
        logits = engine.run(images)
        assert engine.latency_ms(images) > 0
    assert (logits.argmax(1) == expected.argmax(1)).all()
    np.testing.assert_allclose(logits, expected, atol=0.1)
