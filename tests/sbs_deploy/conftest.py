"""One exported run for the tests of export and validation."""

import shutil
from pathlib import Path

import pytest

from sbs_train.contract import rundir
from sbs_train.contract.rundir import RunDir


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A small ResNet-20 on digits, as search and fine-tuning leave it and `export_run` completes it. Do not write."""
    pytest.importorskip("torch")
    from sbs_deploy.export.pipeline import export_run
    from sbs_train.contract.config import TrainConfig, save_config
    from sbs_train.contract.plan import save_plan
    from sbs_train.inputs.data import load_dataset
    from sbs_train.inputs.models import CifarResNet
    from sbs_train.stages.integers import snap_biases
    from sbs_train.stages.weights import finish, save_weights
    from tests.sbs_deploy.export.networks import random_network

    config = TrainConfig(model="resnet20", width=4, data="digits")
    data = load_dataset("digits")
    run = rundir.create_run(tmp_path_factory.mktemp("runs") / "small")
    model = CifarResNet(3, config.width, 1, data.num_classes)
    train = (data.normalise(data.train.images), data.train.labels)
    network, plan = random_network(model, 7, bits=(8, 8, 4), config=config, input=data.input, trained_on=train)
    snap_biases(network, plan)  # or integer kernels round them, and a network this small answers differently
    save_config(config, run.config)
    save_plan(plan, run.plan)
    save_weights(network.model.state_dict(), run.weights)
    save_weights(network.float_state(), run.checkpoints / "fp32.safetensors")
    finish(run, "finetune", {})
    finish(run, "fp32", {})
    export_run(run, progress=lambda line: None)
    return run


@pytest.fixture
def run_copy(exported: RunDir, tmp_path: Path) -> RunDir:
    """The exported run, to be damaged."""
    shutil.copytree(exported.root, tmp_path / "run")
    return RunDir(tmp_path / "run")
