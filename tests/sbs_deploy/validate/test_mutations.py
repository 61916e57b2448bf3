"""No graph that is wrong in one place passes validation, whatever the place; sound graphs do (test_validate.py)."""

import random
from pathlib import Path

import onnx
import pytest

from sbs_deploy.export.codes import load_arrays, load_codes
from sbs_deploy.export.dialects import ORT, TRT
from sbs_deploy.export.qdq import quantized_onnx
from sbs_deploy.validate.run import validate_run
from sbs_train.contract.rundir import RunDir
from tests.sbs_deploy.corruption import save_signed, signed
from tests.sbs_deploy.validate import mutations

IMAGES = 64
SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 3))]


@pytest.fixture
def small(run_copy: RunDir) -> RunDir:
    """A sound run with few golden images."""
    golden = load_arrays(run_copy.golden)
    few = {key: array if key.startswith("tap/") else array[:IMAGES] for key, array in golden.items()}
    save_signed(few, run_copy.golden)
    return run_copy


def mutate(path: Path, mutation: mutations.Mutation, seed: int) -> str:
    model = onnx.load(path)
    where = mutation(random.Random(seed), model)
    if where is None:
        pytest.skip("this graph has no such place")
    onnx.save(model, path)
    signed(path)
    return where


def test_few_images_pass(small: RunDir) -> None:
    report = validate_run(small)
    assert report.passed and not report.failures and report.identity.quantizers_equal
    assert all(error < 1e-5 for errors in report.identity.error.values() for error in errors.values())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["model_trt", pytest.param("model_ort", marks=pytest.mark.slow)])
@pytest.mark.parametrize("mutation", mutations.ALL, ids=lambda mutation: mutation.__name__)
def test_a_graph_that_is_wrong_in_one_place_fails(
    small: RunDir, mutation: mutations.Mutation, name: str, seed: int
) -> None:
    where = mutate(getattr(small, name), mutation, seed)
    report = validate_run(small)
    assert not report.passed and report.failures, where
    assert report.first_divergence is not None, where


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("mutation", mutations.FLOAT, ids=lambda mutation: mutation.__name__)
def test_a_slim_network_that_is_wrong_fails_with_all_that_is_made_of_it(
    small: RunDir, mutation: mutations.Mutation, seed: int
) -> None:
    """PyTorch's quantized network may have lost the same: the float network alone knows better."""
    where = mutate(small.model_slim, mutation, seed)
    slim, codes = onnx.shape_inference.infer_shapes(onnx.load(small.model_slim)), load_codes(small.codes)
    for dialect, path in ((TRT, small.model_trt), (ORT, small.model_ort)):
        onnx.save(quantized_onnx(slim, codes, dialect, plan_sha256="0" * 64), path)
        signed(path)
    report = validate_run(small)
    assert not report.passed, where
    ((name, error),) = report.identity.error["slim"].items()
    assert error is None or error > report.identity.limit[name], where
