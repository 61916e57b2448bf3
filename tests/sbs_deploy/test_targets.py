from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from sbs_deploy import targets
from sbs_train.contract.errors import SbsError
from tests.sbs_deploy.graphs import small_plan


def importer(*installed: str) -> Any:
    def load(name: str) -> ModuleType | SimpleNamespace:
        if name not in installed:
            raise ImportError(f"No module named {name!r}")
        return SimpleNamespace(Builder=object, InferenceSession=object)

    return load


@pytest.mark.parametrize(
    ("installed", "gpu", "chosen", "reason"),
    [
        (("tensorrt", "tensorrt_rtx", "onnxruntime"), "RTX 4090", "tensorrt", "RTX 4090"),
        (("tensorrt", "tensorrt_rtx", "onnxruntime"), None, "tensorrt-rtx", "tensorrt builds on a GPU and none"),
        (("tensorrt_rtx", "onnxruntime"), "RTX 4090", "tensorrt-rtx", "No module named 'tensorrt'"),
        (("onnxruntime",), None, "onnxruntime", "No module named 'tensorrt_rtx'"),
    ],
)
def test_auto_takes_the_first_that_works_and_says_why(
    installed: tuple[str, ...], gpu: str | None, chosen: str, reason: str
) -> None:
    choice = targets.choose_target("auto", importer=importer(*installed), gpu_name=lambda: gpu)
    assert choice.target.name == chosen
    assert reason in choice.why


def test_auto_with_nothing_installed_names_a_remedy() -> None:
    with pytest.raises(SbsError, match="pip install onnxruntime"):
        targets.choose_target("auto", importer=importer(), gpu_name=lambda: None)


def test_unknown_target() -> None:
    with pytest.raises(SbsError, match="choose one of auto, tensorrt, tensorrt-rtx, onnxruntime"):
        targets.choose_target("openvino")


def test_stubs_are_not_tensorrt() -> None:
    """tensorrt-stubs makes `import tensorrt` succeed with an empty module."""
    problem = targets.import_problem(targets.TENSORRT, lambda name: ModuleType(name))
    assert problem is not None and "stubs" in problem


def test_missing_tensorrt_names_both_remedies() -> None:
    if targets.import_problem(targets.TENSORRT) is None:
        pytest.skip("tensorrt is installed here")
    with pytest.raises(SbsError, match=r"pypi\.nvidia\.com.*--target tensorrt-rtx"):
        targets.require_module(targets.TENSORRT)


def test_deployable_bops_counts_eight_bits_for_every_quantized_layer() -> None:
    image, half = 64 * 9, 0.5
    by_hand = 3 * 16 * image * 64 + 16 * 32 * image * half * 64 + 32 * 16 * image * half * 64 + 16 * 10 * 32 * 32
    assert targets.deployable_bops(small_plan()) == pytest.approx(by_hand)
