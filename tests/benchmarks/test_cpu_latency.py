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
    cpu_latency.PEER: 4.0,
    cpu_latency.OURS: 5.0,
    cpu_latency.PRUNED: 2.0,
}


def times(**changes: float) -> dict[str, Measurement]:
    by_model = MODELS | changes
    return {
        f"{engine} {model}": Measurement(rounds_ms=((ms, ms), (2 * ms, 2 * ms)))
        for engine in cpu_latency.ENGINES
        for model, ms in by_model.items()
    }


def test_goals_are_judged_by_the_ratio_within_rounds() -> None:
    found = {(goal["engine"], goal["model"]): goal for goal in cpu_latency.goals(times())}
    assert len(found) == 4
    for engine in cpu_latency.ENGINES:
        assert found[engine, cpu_latency.OURS]["vs_peer"] == pytest.approx(0.8)
        assert not found[engine, cpu_latency.OURS]["met"]
        assert found[engine, cpu_latency.PRUNED]["vs_peer"] == pytest.approx(2)
        assert found[engine, cpu_latency.PRUNED]["met"]


def test_exact_products_have_goals_of_their_own() -> None:
    found = cpu_latency.goals(times(**{cpu_latency.PEER_EXACT: 6.0}))
    ratios = {goal["peer"]: goal["vs_peer"] for goal in found if goal["model"] == cpu_latency.OURS}
    assert ratios == {cpu_latency.PEER: pytest.approx(0.8), cpu_latency.PEER_EXACT: pytest.approx(1.2)}


def test_page_names_machine_and_verdicts() -> None:
    measured = times()
    rows = [
        {"engine": engine, "model": model, "error": 0.0} | cpu_latency.result(measured, engine, model)
        for engine in cpu_latency.ENGINES
        for model in MODELS
    ]
    network = {"network": "small", "channels_pruned": 0.3, "rows": rows, "goals": cpu_latency.goals(measured)}
    found = {"machine": "Some CPU", "versions": {"openvino": "1"}, "protocol": {"rounds": 2}, "networks": [network]}
    text = "\n".join(cpu_latency.page(found))
    assert "Some CPU · openvino 1 · 2 rounds" in text
    assert "| openvino | ours, pruned | 3.0 | 4.0 |" in text and "| 4.00x (4.00–4.00) |" in text
    assert "- ours against quantize_static under openvino: 0.80x (0.80–0.80), the goal is at least 1x: missed." in text
    assert "30% of the prunable channels" in text


def test_the_peers_model_is_the_network_it_was_made_from(tmp_path: Path) -> None:
    source, images, peer = tmp_path / "float.onnx", tmp_path / "golden.npz", tmp_path / "peer.onnx"
    onnx.save(float_model(), source)
    inputs = np.random.default_rng(0).standard_normal((8, *IMAGE)).astype(np.float32)
    np.savez(images, inputs=inputs)
    cpu_networks.make_peer(source, images, peer)
    kinds = {tensor.name: tensor.data_type for tensor in onnx.load(peer).graph.initializer}
    assert kinds["conv2.weight_quantized"] == onnx.TensorProto.INT8
    with (
        OnnxRuntimeEngine(source, SessionSettings(precision="fp32")) as reference,
        OnnxRuntimeEngine(peer, SessionSettings(precision="int8")) as engine,
    ):
        expected, found = reference.run(inputs), engine.run(inputs)
    assert 0 < np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


def test_pictures_are_an_image_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_networks, "CLASSES", 3)
    monkeypatch.setattr(cpu_networks, "BATCH", 1)
    cpu_networks.write_images(tmp_path)
    assert len(list(tmp_path.glob("train/*/0.png"))) == 3
    assert len(list(tmp_path.glob("val/0000/*.png"))) == 2
