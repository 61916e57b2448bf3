"""The layer that is named is the first that differs, and none where all is well."""

import onnx

from sbs_deploy.divergence import first_divergence, first_integer_divergence
from sbs_deploy.export.codes import load_arrays
from sbs_train.contract.rundir import RunDir


def test_no_divergence_without_a_fault(exported: RunDir) -> None:
    golden = load_arrays(exported.golden)
    for path in (exported.model_trt, exported.model_ort):
        assert first_divergence(onnx.load(path), golden) is None


def test_integer_kernels_are_compared_by_their_codes(exported: RunDir) -> None:
    assert first_integer_divergence(exported.model_ort, load_arrays(exported.golden)) is None
