"""The CPU benchmark: what it says about times, and that the peer's model is the network it was made from."""

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

import cpu_latency
import cpu_networks

from sbs_deploy.backends.onnxruntime.engine import OnnxRuntimeEngine, SessionSettings
from sbs_deploy.measure.protocol import Measurement
from tests.sbs_deploy.graphs import IMAGE, float_model

MODELS = {
    cpu_latency.FP32: 8.0,
    cpu_latency.STATIC: 4.0,
    cpu_latency.NNCF: 5.0,
    cpu_latency.ALL: 10.0,
    cpu_latency.OURS: 5.0,
}


def times(**changes: float) -> dict[str, Measurement]:
    """Two rounds, the second on a machine half as fast."""
    by_model = MODELS | changes
    return {model: Measurement(rounds_ms=((ms, ms), (2 * ms, 2 * ms))) for model, ms in by_model.items()}


def test_ratios_are_those_within_rounds() -> None:
    found = cpu_latency.ratios(times())
    assert {label: speed[0] for label, speed in found["over_fp32"].items()} == {
        "FP32": 1.0,
        "quantize_static": 2.0,
        "NNCF": 1.6,
        "all INT8": 0.8,
        "ours": 1.6,
    }
    assert (found["best_peer"], found["fastest"], found["over_fastest"]) == ("quantize_static", "quantize_static", 0.8)


def test_the_fastest_of_the_others_may_be_float() -> None:
    found = cpu_latency.ratios(times(**{cpu_latency.FP32: 2.5, cpu_latency.OURS: 2.5}))
    assert (found["fastest"], found["over_fastest"]) == ("FP32", 1.0)


def test_a_model_that_the_engine_does_not_run_has_no_ratio() -> None:
    alive = {label: one for label, one in times().items() if label not in cpu_latency.PEERS}
    found = cpu_latency.ratios(alive)
    assert found["best_peer"] == "FP32" and found["over_fp32"].keys() == alive.keys()


def network(isa: str = "") -> dict[str, object]:
    rows = {label: {"quickest_ms": ms, "apart": None} for label, ms in MODELS.items()}
    rows[cpu_latency.ALL]["apart"] = (0.5, 0.9)
    return {
        "network": "small",
        "isa": isa,
        "machine": "Some CPU",
        "versions": {"openvino": "1"},
        "protocol": {"rounds": 2},
        "engines": [{"engine": "openvino", "models": rows, "failed": {}, **cpu_latency.ratios(times())}],
    }


def test_the_page_has_a_table_for_each_engine_and_instruction_set() -> None:
    text = "\n".join(cpu_latency.page([network(), network("AVX2")]))
    row = "| small | 8.0 | 1.60x | ~0.80x | 2.00x (quantize_static) | 0.80x (0.80–0.80, quantize_static) |"
    assert text.count(row) == 2 and "## openvino\n" in text and "## openvino, AVX2 at most" in text
    assert "Some CPU · openvino 1 · 2 rounds" in text and "Below 0.98x of the fastest: small." in text


def test_the_peers_model_is_the_network_it_was_made_from(tmp_path: Path) -> None:
    source, images, peer = tmp_path / "float.onnx", tmp_path / "golden.npz", tmp_path / "peer.onnx"
    onnx.save(float_model(), source)
    inputs = np.random.default_rng(0).standard_normal((8, *IMAGE)).astype(np.float32)
    np.savez(images, **{"input/input": inputs})
    cpu_networks.make_peer(source, images, peer)
    kinds = {tensor.name: tensor.data_type for tensor in onnx.load(peer).graph.initializer}
    assert kinds["conv2.weight_quantized"] == onnx.TensorProto.INT8
    with (
        OnnxRuntimeEngine(source, SessionSettings(precision="fp32")) as reference,
        OnnxRuntimeEngine(peer, SessionSettings(precision="int8")) as engine,
    ):
        expected, found = (one.run({"input": inputs})["logits"] for one in (reference, engine))
    assert 0 < np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


def test_pictures_are_an_image_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_networks, "CLASSES", 3)
    monkeypatch.setattr(cpu_networks, "BATCH", 1)
    cpu_networks.write_images(tmp_path)
    assert len(list(tmp_path.glob("train/*/0.png"))) == 3
    assert len(list(tmp_path.glob("val/0000/*.png"))) == 2
