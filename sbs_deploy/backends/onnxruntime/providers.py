"""ONNX Runtime's execution providers: their names, their packages, and sessions that use them.

CUDA and TensorRT are part of onnxruntime-gpu. TensorRT-RTX is a plugin beside the CPU package: its library is
registered, and a session is given its device.
"""

import contextlib
import functools
import importlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from sbs_deploy.backends.spec import Backend
from sbs_train.contract.errors import SbsError


@dataclass(frozen=True, kw_only=True)
class Provider:
    """An execution provider of ONNX Runtime."""

    name: str
    """The provider's name for `--provider`."""
    ep: str
    """The provider's name in ONNX Runtime."""
    install: str
    """How to install the provider."""
    memory: str
    """Memory of inputs and outputs, as OrtValue names it."""
    plugin: str | None = None
    """Python package of a plugin; None if built in."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Settings; {cache} stands for the directory of compiled code."""
    options_of: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Further settings by precision."""

    def settings(self, precision: str, cache: Path | None) -> dict[str, str]:
        """Options for an engine of a precision; options with {cache} are left out without a cache."""
        options = {**self.options, **self.options_of.get(precision, {})}
        if cache is None:
            return {key: value for key, value in options.items() if "cache" not in key}
        return {key: value.format(cache=cache) for key, value in options.items()}


CPU = Provider(name="cpu", ep="CPUExecutionProvider", install="`pip install onnxruntime`", memory="cpu")
CUDA = Provider(
    name="cuda",
    ep="CUDAExecutionProvider",
    install="`pip uninstall -y onnxruntime`, then `pip install onnxruntime-gpu` and a driver for its CUDA version",
    memory="cuda",
)
TENSORRT = Provider(
    name="tensorrt",
    ep="TensorrtExecutionProvider",
    install="`pip uninstall -y onnxruntime`, then `pip install onnxruntime-gpu` and the TensorRT version it was built "
    "with (`pip install tensorrt --extra-index-url https://pypi.nvidia.com`)",
    memory="cuda",
    options={
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": "{cache}",
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": "{cache}",
    },
    # Without these TensorRT may not choose kernels of these types.
    options_of={"int8": {"trt_int8_enable": "1", "trt_fp16_enable": "1"}, "fp16": {"trt_fp16_enable": "1"}},
)
NV_TENSORRT_RTX = Provider(
    name="nv-tensorrt-rtx",
    ep="NvTensorRTRTXExecutionProvider",
    install="`pip install onnxruntime-ep-nv-tensorrt-rtx` beside onnxruntime >= 1.24 (not onnxruntime-gpu)",
    memory="cuda",
    plugin="onnxruntime_ep_nv_tensorrt_rtx",
    options={"nv_runtime_cache_path": "{cache}"},
)
PROVIDERS = (CPU, CUDA, TENSORRT, NV_TENSORRT_RTX)


def provider_of(backend: Backend) -> Provider:
    """The provider of a backend that runs on ONNX Runtime."""
    return next(provider for provider in PROVIDERS if provider.name == backend.device)


@contextlib.contextmanager
def under_its_name(temporary: Path, destination: Path) -> Iterator[Path]:
    """Yield a copy of an unfinished engine with its final file name.

    The TensorRT providers name compiled code after the model's file name without folders (onnxruntime,
    TRTGenerateId), and would not find it under another name.
    """
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=f".{destination.name}.") as folder:
        named = Path(folder) / destination.name
        shutil.copyfile(temporary, named)
        yield named


def open_session(
    ort: ModuleType, model: str | bytes, options: Any, provider: Provider, settings: dict[str, str]
) -> Any:
    """A session on `provider`; the CPU runs nodes that the provider does not support.

    Raises:
        SbsError: the provider is not installed, finds no device, or ONNX Runtime silently ignored it.
    """
    if provider.plugin is None:
        if provider.ep not in ort.get_available_providers():
            raise SbsError(f"onnxruntime {ort.__version__} here has no {provider.ep}; get it with {provider.install}")
        names: tuple[str, ...] = (provider.ep,)
        wanted: list[Any] = [(provider.ep, settings)]
        session = ort.InferenceSession(model, options, providers=wanted + [CPU.ep] * (provider is not CPU))
    else:
        names, devices = _plugin_devices(ort, provider)
        options.add_provider_for_devices(devices[:1], settings)
        session = ort.InferenceSession(model, options)
    used = session.get_providers()
    if used[0] not in names:
        raise SbsError(
            f"{provider.ep} did not start, and onnxruntime {ort.__version__} silently fell back to {used}; "
            f"get what it needs with {provider.install}"
        )
    return session


def _plugin_devices(ort: ModuleType, provider: Provider) -> tuple[tuple[str, ...], list[Any]]:
    """Names of a plugin's provider, and the devices it found."""
    assert provider.plugin is not None
    try:
        package = importlib.import_module(provider.plugin)
    except ImportError as error:
        raise SbsError(f"{provider.ep} is a plugin that is not installed; get it with {provider.install}") from error
    names = (provider.ep, str(package.get_ep_name()))  # packages and documents use different names
    _register(ort, provider.ep, package.get_library_path())
    devices = [device for device in ort.get_ep_devices() if device.ep_name in names]
    if not devices:
        raise SbsError(f"{provider.ep} finds no device here: it needs an NVIDIA RTX GPU and its driver")
    return names, devices


@functools.cache
def _register(ort: ModuleType, name: str, library: str) -> None:
    """Register a plugin once per process, as ONNX Runtime refuses a second registration."""
    ort.register_execution_provider_library(name, library)
