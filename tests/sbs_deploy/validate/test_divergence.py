"""The layer that is named is the first that differs, and none where all is well."""

from collections.abc import Mapping

import numpy as np
import onnx
import pytest

from sbs_deploy.graph.run import run_graph
from sbs_deploy.legalise.half import half_precision
from sbs_deploy.validate.divergence import (
    first_divergence,
    first_engine_divergence,
    first_integer_divergence,
    with_layer_outputs,
)
from sbs_train.contract.rundir import RunDir
from tests.sbs_deploy.golden import golden_of


def test_no_divergence_without_a_fault(exported: RunDir) -> None:
    golden = golden_of(exported)
    for path in (exported.model_trt, exported.model_ort):
        assert first_divergence(onnx.load(path), golden) is None


def test_integer_kernels_are_compared_by_their_codes(exported: RunDir) -> None:
    assert first_integer_divergence(exported.model_ort, golden_of(exported)) is None


def test_what_layers_write_is_what_pytorch_wrote(exported: RunDir) -> None:
    golden = golden_of(exported)
    taps = golden.taps
    watched, outputs = with_layer_outputs(onnx.load(exported.model_trt))
    found = run_graph(watched, list(outputs.values()), golden.first_inputs(golden.tapped), "none")
    assert set(taps) <= set(outputs)
    for name, expected in taps.items():
        np.testing.assert_allclose(found[outputs[name]], expected, atol=2e-3)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("wrong", [None, 0, 5, -1])
def test_the_layer_where_an_engine_goes_wrong(exported: RunDir, half: bool, wrong: int | None) -> None:
    model = onnx.load(exported.model_trt)
    model = half_precision(model) if half else model
    inputs = golden_of(exported).first_inputs(4)
    names = list(with_layer_outputs(model)[1])
    late = [] if wrong is None else names[wrong:]

    def engine(graph: onnx.ModelProto, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Wrong from one layer on, and with the rounding of other kernels throughout."""
        found = run_graph(graph, [output.name for output in graph.graph.output], inputs, "all")
        return {name: value * (-1 if name.removesuffix("/result") in late else 1) for name, value in found.items()}

    assert first_engine_divergence(model, inputs, engine) == (None if wrong is None else names[wrong])
