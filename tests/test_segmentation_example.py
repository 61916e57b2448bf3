"""The segmentation example, shortened: real clothes and masks, to engines that answer like the trained network."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest

import sbs_deploy
from sbs_train.contract.config import CalibrateConfig, FinetuneConfig, PretrainConfig, SearchConfig
from sbs_train.stages.train import train

EXAMPLE = Path(__file__).parents[1] / "examples" / "segmentation.py"


@pytest.mark.slow  # a training of LR-ASPP
def test_the_engines_reach_what_the_network_does(tmp_path):
    spec = importlib.util.spec_from_file_location("segmentation_example", EXAMPLE)
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.write_data(tmp_path / "data", 240, 32)
    config = replace(
        example.CONFIG,
        data=f"folder:{tmp_path / 'data'}",
        target="20x",
        calibrate=CalibrateConfig(batches=4),
        pretrain=PretrainConfig(epochs=8, lr=0.03),
        search=SearchConfig(epochs=2, lr=0.01),
        finetune=FinetuneConfig(epochs=3, lr=0.01),
    )
    run = train(config, tmp_path / "run")
    assert run.reached and run.metrics.finetune.score_name == "miou"
    ours = run.metrics.finetune.score
    assert ours > 8.5  # background alone, 85 % of the pixels, is a mean of less than 8.5 over 11 classes
    for backend in ("onnxruntime", "openvino"):
        sbs_deploy.build(run.run, "int8", backend, placement="plan", legalise="exact", outputs="none")
        found = sbs_deploy.evaluate(run.run, backend=backend)
        assert found["images"] == 32 and abs(found["miou"] - ours) < 1.5
    assert sbs_deploy.build(run.run, "int8", "tensorrt-rtx", placement="plan").path.is_file()
