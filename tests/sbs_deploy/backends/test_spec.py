import importlib.metadata
from types import ModuleType, SimpleNamespace

import pytest

from sbs_deploy.backends import spec
from sbs_train.contract.errors import SbsError


def install(monkeypatch: pytest.MonkeyPatch, *installed: str, gpu: str | None) -> None:
    """Let these modules alone be there, and this GPU."""

    def load(name: str) -> ModuleType | SimpleNamespace:
        if name not in installed:
            raise ImportError(f"No module named {name!r}")
        return SimpleNamespace(Builder=object, InferenceSession=object, Core=object)

    fake = SimpleNamespace(import_module=load, metadata=importlib.metadata)
    monkeypatch.setattr(spec, "importlib", fake)
    monkeypatch.setattr(spec.clocks, "gpu_name", lambda: gpu)


@pytest.mark.parametrize(
    ("installed", "gpu", "chosen", "reason"),
    [
        (("tensorrt", "tensorrt_rtx", "onnxruntime"), "RTX 4090", "tensorrt", "RTX 4090"),
        (("tensorrt", "tensorrt_rtx", "onnxruntime"), None, "tensorrt-rtx", "tensorrt builds on a GPU and none"),
        (("tensorrt_rtx", "onnxruntime"), "RTX 4090", "tensorrt-rtx", "No module named 'tensorrt'"),
        (("onnxruntime", "openvino"), None, "onnxruntime", "No module named 'tensorrt_rtx'"),
        (("openvino",), None, "openvino", "No module named 'onnxruntime'"),
    ],
)
def test_auto_takes_the_first_that_works_and_says_why(
    installed: tuple[str, ...], gpu: str | None, chosen: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, *installed, gpu=gpu)
    choice = spec.choose_backend("auto")
    assert choice.backend.name == chosen
    assert reason in choice.why


def test_auto_with_nothing_installed_names_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, gpu=None)
    with pytest.raises(SbsError, match="pip install onnxruntime"):
        spec.choose_backend("auto")


def test_unknown_backend() -> None:
    with pytest.raises(SbsError, match="choose one of auto, tensorrt, tensorrt-rtx, onnxruntime, openvino"):
        spec.choose_backend("tflite")


@pytest.mark.parametrize(
    ("name", "chosen", "label", "dialect", "precisions"),
    [
        ("onnxruntime", {}, "onnxruntime", "ort", ("int8", "fp32")),
        ("onnxruntime", {"provider": "cpu"}, "onnxruntime", "ort", ("int8", "fp32")),
        ("onnxruntime", {"provider": "cuda"}, "onnxruntime-cuda", "trt", ("fp16", "fp32")),
        ("onnxruntime", {"provider": "tensorrt"}, "onnxruntime-tensorrt", "trt", ("int8", "fp16", "fp32")),
        (
            "onnxruntime",
            {"provider": "nv-tensorrt-rtx"},
            "onnxruntime-nv-tensorrt-rtx",
            "trt",
            ("int8", "fp16", "fp32"),
        ),
        ("openvino", {}, "openvino", "ort", ("int8", "fp32")),
        ("openvino", {"device": "gpu"}, "openvino-gpu", "ort", ("int8", "fp16", "fp32")),
        ("openvino", {"device": "GPU.1"}, "openvino-gpu1", "ort", ("int8", "fp16", "fp32")),
        ("openvino", {"device": "NPU"}, "openvino-npu", "ort", ("int8", "fp16")),
    ],
)
def test_devices_and_providers(
    name: str, chosen: dict[str, str], label: str, dialect: str, precisions: tuple[str, ...]
) -> None:
    backend = spec.choose_backend(name, **chosen).backend
    assert (backend.label, backend.dialect, backend.precisions) == (label, dialect, precisions)
    assert spec.backend_labelled(label) == backend
    flags = backend.flags.split()
    assert flags[:2] == ["--backend", name]
    again = dict(zip([flag.removeprefix("--") for flag in flags[2::2]], flags[3::2], strict=True))
    assert spec.choose_backend(name, **again).backend == backend


def test_labels_are_no_other_backends() -> None:
    labels = [backend.label for backend in spec.DEVICES]
    assert len(set(labels)) == len(labels)
    assert spec.backend_labelled("openvino1") is None
    assert spec.backend_labelled("openvino-cpu0") is None
    assert spec.backend_labelled("tensorrt-cuda") is None


@pytest.mark.parametrize(
    ("name", "chosen", "words"),
    [
        ("auto", {"provider": "cuda"}, "--provider cuda belongs to --backend onnxruntime"),
        ("openvino", {"provider": "cuda"}, "--provider cuda belongs to --backend onnxruntime"),
        ("onnxruntime", {"device": "GPU"}, "--device GPU belongs to --backend openvino"),
        ("openvino", {"device": "TPU"}, "no TPU; choose one of CPU, GPU, NPU"),
        ("openvino", {"device": "CPU.0"}, "no CPU.0; choose one of CPU, GPU, NPU"),
    ],
)
def test_a_device_of_another_backend_is_refused(name: str, chosen: dict[str, str], words: str) -> None:
    with pytest.raises(SbsError, match=words):
        spec.choose_backend(name, **chosen)


@pytest.mark.parametrize(
    ("installed", "problem"),
    [(("onnxruntime",), False), (("onnxruntime-gpu",), False), ((), False), (("onnxruntime", "onnxruntime-gpu"), True)],
)
def test_two_packages_of_onnxruntime_overwrite_each_other(
    monkeypatch: pytest.MonkeyPatch, installed: tuple[str, ...], problem: bool
) -> None:
    """A module without either package is one that was built from source."""

    def version(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.32.0"

    monkeypatch.setattr(importlib.metadata, "version", version)
    install(monkeypatch, "onnxruntime", gpu=None)
    found = spec.import_problem(spec.ONNXRUNTIME)
    assert (found is not None) == problem
    if found is not None:
        assert "pip uninstall -y onnxruntime onnxruntime-gpu" in found


def test_no_package_of_onnxruntime_names_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spec, "import_problem", lambda backend: "onnxruntime cannot be imported")
    with pytest.raises(SbsError, match="pip install onnxruntime`, or `pip install onnxruntime-gpu` for NVIDIA GPUs"):
        spec.require_module(spec.ONNXRUNTIME)


def test_stubs_are_not_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    """tensorrt-stubs makes `import tensorrt` succeed with an empty module."""
    monkeypatch.setattr(spec, "importlib", SimpleNamespace(import_module=ModuleType))
    problem = spec.import_problem(spec.TENSORRT)
    assert problem is not None and "stubs" in problem


def test_missing_tensorrt_names_both_remedies() -> None:
    if spec.import_problem(spec.TENSORRT) is None:
        pytest.skip("tensorrt is installed here")
    with pytest.raises(SbsError, match=r"pypi\.nvidia\.com.*--backend tensorrt-rtx"):
        spec.require_module(spec.TENSORRT)
