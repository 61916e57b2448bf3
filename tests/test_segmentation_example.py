"""The segmentation example, shortened: real clothes and masks, to engines that answer like the trained network."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest

import sbs_deploy
from sbs_train.contract.config import CalibrateConfig, FinetuneConfig, PretrainConfig, SearchConfig

EXAMPLE = Path(__file__).parents[1] / "examples" / "segmentation.py"


@pytest.mark.slow  # a training
def test_the_engines_reach_what_the_network_does(tmp_path):
    spec = importlib.util.spec_from_file_location("segmentation_example", EXAMPLE)
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.write_data(tmp_path / "data", 240, 40)
    config = replace(
        example.CONFIG,
        calibrate=CalibrateConfig(batches=4),
        pretrain=replace(example.CONFIG.pretrain, epochs=8),
        search=SearchConfig(epochs=3, lr=0.01),
        finetune=FinetuneConfig(epochs=2, lr=0.01),
    )
    assert isinstance(config.pretrain, PretrainConfig)
    ours, engines = example.main(tmp_path, config)
    assert ours > 27  # the background alone, nine tenths of the pixels, gives 18
    assert set(engines) == {"onnxruntime", "openvino"}
    assert all(abs(found - ours) < 2 for found in engines.values())
    assert sbs_deploy.build(tmp_path / "deployed", "int8", "tensorrt-rtx", placement="plan").path.is_file()
