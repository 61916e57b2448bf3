"""The examples run, and end at engines that answer like their models."""

import importlib.util
from pathlib import Path

import pytest
import torch

import sbs_deploy
from sbs_train.contract.rundir import open_run
from sbs_train.contract.validation import Validation

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.slow


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def passed(out) -> Validation:
    found = sbs_deploy.validate(out)
    assert found.passed and found.codes_equal
    return found


def test_own_loop(tmp_path):
    own = example("own_loop")
    if not own.DATA.is_dir():
        pytest.skip(f"no {own.DATA}")
    found = own.main(tmp_path / "own", steps=120)
    passed(tmp_path / "own")
    assert found["plan"]["garment"] > 75 and found["plan"]["brightness"] < 0.08
    for backend in ("onnxruntime", "openvino"):
        if backend in found:
            assert found[backend]["garment"] == pytest.approx(found["plan"]["garment"], abs=1.5)
            assert found[backend]["brightness"] == pytest.approx(found["plan"]["brightness"], abs=0.003)
    engines = {path.name for path in open_run(tmp_path / "own").engines.glob("model.int8.*")}
    for backend, package in own.BACKENDS.items():
        assert importlib.util.find_spec(package) is None or any(f".{backend}." in name for name in engines)


def test_lightning_callback(tmp_path):
    pytest.importorskip("lightning")
    callback = example("lightning_callback")
    lines = Path(callback.__file__).read_text().partition("class Compress")[2].partition("\n\n\nclass")[0].splitlines()
    assert len(lines) <= 40
    known, known_by_engine = callback.main(tmp_path / "lightning", accelerator="cpu", accumulate_grad_batches=2)
    passed(tmp_path / "lightning")
    assert known > 0.9 and known_by_engine == pytest.approx(known, abs=0.02)


def test_a_lightning_run_that_was_stopped_goes_on(tmp_path):
    pl = pytest.importorskip("lightning.pytorch")
    callback = example("lightning_callback")

    def fit(epochs, checkpoint=None):
        pl.seed_everything(0)
        x, y = torch.randn(96, 1, 8, 8), torch.randint(0, 10, (96,))
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 16)
        compress = callback.Compress(20, [x[:16]], target="30x")
        common = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "accelerator": "cpu"}
        trainer = pl.Trainer(max_epochs=epochs, callbacks=[compress], **common)
        model = callback.Digits()
        trainer.fit(model, loader, ckpt_path=checkpoint)
        trainer.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return model, compress.plan

    whole, plan = fit(6)
    fit(2)
    resumed, found = fit(6, tmp_path / "2.ckpt")
    assert found == plan
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])
