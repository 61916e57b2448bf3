"""The moving average against NumPy, and what is kept of a fine-tuning with one, killed or not."""

import signal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from sbs_train import cli
from sbs_train.stages.supervised import WeightAverage
from tests.sbs_train.stages.killed import Point, session

EVERY_STEP = ("--checkpoint-minutes", "1e-6")
EMA = ("--finetune.ema", "0.9")


@given(decay=st.floats(0.0, 0.999), seed=st.integers(0, 2**31))
def test_the_average_against_numpy(decay, seed):
    rng = np.random.default_rng(seed)
    steps = rng.normal(size=(6, 3)).astype(np.float32)
    parameter = torch.nn.Parameter(torch.from_numpy(steps[0].copy()))
    average = WeightAverage([parameter], decay)
    expected = steps[0].astype(np.float64)
    for step in steps[1:]:
        parameter.data.copy_(torch.from_numpy(step))
        average.update()
        expected = decay * expected + (1 - decay) * step
    again = WeightAverage([parameter], decay)
    again.load_state_dict(average.state_dict())
    again.take()
    np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow  # three runs
def test_an_average_is_kept_and_survives_a_kill(tmp_path):
    whole, killed, plain = (tmp_path / name for name in ("whole", "killed", "plain"))
    assert session(whole, *EMA) == 0
    assert session(killed, *EMA, *EVERY_STEP, kill=Point("step", "finetune", 3)) == -signal.SIGKILL
    assert session(killed, resume=True) == 0
    assert (whole / "weights.safetensors").read_bytes() == (killed / "weights.safetensors").read_bytes()
    assert session(plain) == 0
    a, b = (load_file(run / "weights.safetensors") for run in (whole, plain))
    assert any(not torch.equal(a[name], b[name]) for name in a)


def test_a_decay_out_of_range(tmp_path, capsys):
    assert cli.main(["--finetune.ema", "1", "--out", str(tmp_path / "run")]) == 2
    assert "--finetune.ema 1.0 must be at least 0 and below 1" in capsys.readouterr().err
