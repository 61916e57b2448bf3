"""Execution providers on a fake onnxruntime that answers as documented: nothing here needs a GPU."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

import sbs_deploy.backends.runtime
from sbs_deploy.backends.base import cache_of
from sbs_deploy.backends.onnxruntime import engine as ort_engine
from sbs_deploy.backends.onnxruntime import providers, runtime
from sbs_deploy.backends.request import Request
from sbs_deploy.backends.runtime import build_engine
from sbs_deploy.backends.spec import DEVICES, ONNXRUNTIME
from sbs_train.contract import rundir
from sbs_train.contract.errors import SbsError
from tests.sbs_deploy.graphs import float_model

NV = "onnxruntime_ep_nv_tensorrt_rtx"


class Binding:
    def __init__(self, session: "Session") -> None:
        self.session, self.inputs, self.outputs = session, {}, {}
        self.synchronized = 0

    def bind_ortvalue_input(self, name: str, value: "Value") -> None:
        self.inputs[name] = value

    def bind_output(self, name: str, device_type: str, device_id: int) -> None:
        self.outputs[name] = (device_type, device_id)

    def synchronize_outputs(self) -> None:
        self.synchronized += 1

    def copy_outputs_to_cpu(self) -> list[np.ndarray]:
        return [self.inputs["input"].array.sum((1, 2, 3))[:, None]]


class Value:
    def __init__(self, array: np.ndarray, device: str) -> None:
        self.array, self.device, self.updates = array.copy(), device, 0

    def shape(self) -> list[int]:
        return list(self.array.shape)

    def update_inplace(self, array: np.ndarray) -> None:
        self.array[...] = array
        self.updates += 1


class Session:
    def __init__(self, model: Any, options: Any, providers: Any = None) -> None:
        self.options, self.asked = options, providers
        self.bindings: list[Binding] = []
        self.runs = 0

    def get_providers(self) -> list[str]:
        if self.options.devices:
            return [self.options.devices[0].ep_name, providers.CPU.ep]
        return [one if isinstance(one, str) else one[0] for one in self.asked]

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name="input", type="tensor(float)", shape=["batch", 3, 8, 8])]

    def get_outputs(self) -> list[Any]:
        return [SimpleNamespace(name="logits", type="tensor(float)", shape=["batch", 10])]

    def io_binding(self) -> Binding:
        self.bindings.append(Binding(self))
        return self.bindings[-1]

    def run_with_iobinding(self, binding: Binding) -> None:
        self.runs += 1


class Options:
    def __init__(self) -> None:
        self.devices: list[Any] = []
        self.settings: dict[str, str] = {}

    def add_provider_for_devices(self, devices: list[Any], settings: dict[str, str]) -> None:
        self.devices, self.settings = list(devices), settings

    def add_session_config_entry(self, key: str, value: str) -> None:
        pass


class FakeRuntime(ModuleType):
    """onnxruntime-gpu 1.32, or the CPU package with a plugin."""

    def __init__(self, *available: str, devices: tuple[str, ...] = ()) -> None:
        super().__init__("onnxruntime")
        self.__version__ = "1.32.0"
        self.GraphOptimizationLevel = SimpleNamespace(ORT_ENABLE_ALL=99, ORT_DISABLE_ALL=0)
        self.SessionOptions = Options
        self.InferenceSession = Session
        self.OrtValue = SimpleNamespace(ortvalue_from_numpy=lambda array, device, index: Value(array, device))
        self.capi = sys.modules["onnxruntime"].capi
        self.libraries: list[tuple[str, str]] = []
        self.available, self.devices = available, devices

    def get_available_providers(self) -> list[str]:
        return [*self.available, providers.CPU.ep]

    def register_execution_provider_library(self, name: str, path: str) -> None:
        if (name, path) in self.libraries:
            raise RuntimeError(f"library {name} is already registered")
        self.libraries.append((name, path))

    def get_ep_devices(self) -> list[Any]:
        return [SimpleNamespace(ep_name=name) for name in ("CPUExecutionProvider", *self.devices)]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    pytest.importorskip("onnxruntime")
    path = tmp_path / "model.onnx"
    onnx.save(float_model(), path)
    return path


def use(monkeypatch: pytest.MonkeyPatch, fake: FakeRuntime) -> FakeRuntime:
    for module in (ort_engine, runtime, sbs_deploy.backends.runtime):
        monkeypatch.setattr(module, "require_module", lambda backend: fake)
    monkeypatch.setattr(ort_engine.clocks, "gpu_name", lambda: "NVIDIA RTX 4090")
    return fake


def with_plugin(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    plugin = ModuleType(NV)
    plugin.get_ep_name = lambda: name  # type: ignore[attr-defined]
    plugin.get_library_path = lambda: "/lib/libnv.so"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, NV, plugin)


def test_every_device_of_onnxruntime_has_a_provider() -> None:
    devices = [backend for backend in DEVICES if backend.name == ONNXRUNTIME.name]
    assert {providers.provider_of(backend).name for backend in devices} == {p.name for p in providers.PROVIDERS}


def test_cuda_keeps_inputs_and_outputs_on_the_device(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    use(monkeypatch, FakeRuntime(providers.CUDA.ep))
    engine = ort_engine.OnnxRuntimeEngine(model, ort_engine.SessionSettings(precision="fp32", provider=providers.CUDA))
    assert engine.device == "NVIDIA RTX 4090 (CUDAExecutionProvider)"
    images = np.ones((2, 3, 8, 8), np.float32)
    np.testing.assert_array_equal(engine.run({"input": images})["logits"], [[192], [192]])
    np.testing.assert_array_equal(engine.run({"input": 2 * images})["logits"], [[384], [384]])
    assert engine.latency_ms({"input": images}) >= 0
    session = engine._session
    (binding,) = session.bindings
    assert (binding.inputs["input"].device, binding.inputs["input"].updates) == ("cuda", 2)
    assert binding.outputs == {"logits": ("cuda", 0)}
    assert (session.runs, binding.synchronized) == (3, 1)
    engine.run({"input": images[:1]})
    assert len(session.bindings) == 2


def test_tensorrt_keeps_what_it_builds_beside_the_engine(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    use(monkeypatch, FakeRuntime(providers.TENSORRT.ep, providers.CUDA.ep))
    cache = cache_of(model)
    engine = ort_engine.OnnxRuntimeEngine(
        model, ort_engine.SessionSettings(precision="int8", provider=providers.TENSORRT, cache=cache)
    )
    (name, settings), cpu = engine._session.asked
    assert (name, cpu) == (providers.TENSORRT.ep, providers.CPU.ep)
    assert settings["trt_engine_cache_path"] == settings["trt_timing_cache_path"] == str(cache)
    assert settings["trt_int8_enable"] == "1"
    assert cache.is_dir()


class CompilingSession(Session):
    """Like TensorRT's providers: what was compiled is kept under a name made of the model's file name."""

    compiled: list[str] = []

    def __init__(self, model: Any, options: Any, providers: Any = None) -> None:
        super().__init__(model, options, providers)
        folders = [value for key, value in self.settings().items() if key.endswith("cache_path")]
        for folder in folders[:1]:
            kept = Path(folder) / f"TRTKernel_{Path(model).name}.engine"
            if not kept.exists():
                self.compiled.append(kept.name)
                kept.write_bytes(b"compiled")

    def settings(self) -> dict[str, str]:
        return self.options.settings or next((one[1] for one in self.asked or () if not isinstance(one, str)), {})

    def run(self, outputs: Any, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [feeds["input"].sum((1, 2, 3))[:, None]]


@pytest.mark.parametrize("provider", [providers.TENSORRT, providers.NV_TENSORRT_RTX], ids=lambda p: p.name)
def test_what_a_build_compiles_is_found_again(
    monkeypatch: pytest.MonkeyPatch, model: Path, provider: providers.Provider
) -> None:
    fake = use(monkeypatch, FakeRuntime(providers.TENSORRT.ep, devices=(providers.NV_TENSORRT_RTX.ep,)))
    with_plugin(monkeypatch, providers.NV_TENSORRT_RTX.ep)
    monkeypatch.setattr(fake, "InferenceSession", CompilingSession)
    monkeypatch.setattr(CompilingSession, "compiled", [])
    backend = next(one for one in DEVICES if one.device == provider.name)
    path = model.parent / "engines" / f"model.int8.{backend.label}.onnx"
    built = build_engine(model, path, Request(backend=backend, precision="int8"), made_from={})
    assert len(CompilingSession.compiled) == 1
    cache = cache_of(path)
    with ort_engine.OnnxRuntimeEngine(
        built.path, ort_engine.SessionSettings(precision="int8", provider=provider, cache=cache)
    ) as engine:
        engine.run({"input": np.ones((2, 3, 8, 8), np.float32)})
    assert len(CompilingSession.compiled) == 1, "what the build compiled is used"
    manifest = rundir.manifest_path(path)
    assert sorted(path.parent.iterdir()) == sorted([path, cache, manifest]), "nothing else is left behind"


def test_settings_without_a_cache_name_none() -> None:
    assert providers.TENSORRT.settings("fp32", None) == {}
    assert providers.TENSORRT.settings("fp16", None) == {"trt_fp16_enable": "1"}


@pytest.mark.parametrize("name", ["NvTensorRTRTXExecutionProvider", "nv_tensorrt_rtx"])
def test_the_plugin_is_registered_once_and_given_its_device(
    monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path, name: str
) -> None:
    fake = use(monkeypatch, FakeRuntime(devices=(name, name)))
    with_plugin(monkeypatch, name)
    for _ in range(2):
        engine = ort_engine.OnnxRuntimeEngine(
            model,
            ort_engine.SessionSettings(precision="int8", provider=providers.NV_TENSORRT_RTX, cache=tmp_path / "cache"),
        )
    assert fake.libraries == [("NvTensorRTRTXExecutionProvider", "/lib/libnv.so")]
    options = engine._session.options
    assert [device.ep_name for device in options.devices] == [name]
    assert options.settings == {"nv_runtime_cache_path": str(tmp_path / "cache")}


def test_a_plugin_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    use(monkeypatch, FakeRuntime())
    monkeypatch.setitem(sys.modules, NV, None)
    with pytest.raises(SbsError, match="pip install onnxruntime-ep-nv-tensorrt-rtx"):
        ort_engine.make_session(model, ort_engine.SessionSettings(threads=1, provider=providers.NV_TENSORRT_RTX))


def test_a_plugin_without_a_device(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    use(monkeypatch, FakeRuntime())
    with_plugin(monkeypatch, "nv_tensorrt_rtx")
    with pytest.raises(SbsError, match="needs an NVIDIA RTX GPU"):
        ort_engine.make_session(model, ort_engine.SessionSettings(threads=1, provider=providers.NV_TENSORRT_RTX))


@pytest.mark.parametrize("provider", [providers.CUDA, providers.TENSORRT])
def test_a_provider_that_is_not_there_names_the_package(
    monkeypatch: pytest.MonkeyPatch, model: Path, provider: providers.Provider
) -> None:
    use(monkeypatch, FakeRuntime())
    cache = cache_of(model)
    with pytest.raises(SbsError, match=f"no {provider.ep}.*pip install onnxruntime-gpu"):
        ort_engine.OnnxRuntimeEngine(
            model, ort_engine.SessionSettings(precision="fp32", provider=provider, cache=cache)
        )
    assert not cache.exists()


def test_a_provider_that_fell_back_is_an_error(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    """The real onnxruntime drops a listed provider that does not start, silently."""
    real = pytest.importorskip("onnxruntime")
    if providers.CUDA.ep in real.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    monkeypatch.setattr(real, "get_available_providers", lambda: [providers.CUDA.ep, providers.CPU.ep])
    with pytest.raises(SbsError, match="silently fell back to.*onnxruntime-gpu"), pytest.warns(UserWarning):
        ort_engine.make_session(model, ort_engine.SessionSettings(threads=1, provider=providers.CUDA))


@pytest.mark.gpu
@pytest.mark.parametrize("provider", [p for p in providers.PROVIDERS if p is not providers.CPU], ids=lambda p: p.name)
def test_a_real_provider_agrees_with_the_cpu(model: Path, tmp_path: Path, provider: providers.Provider) -> None:
    images = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)
    try:
        engine = ort_engine.OnnxRuntimeEngine(
            model, ort_engine.SessionSettings(precision="fp32", provider=provider, cache=tmp_path / "cache")
        )
    except SbsError as error:
        pytest.skip(str(error))
    with engine, ort_engine.OnnxRuntimeEngine(model, ort_engine.SessionSettings(precision="fp32")) as reference:
        np.testing.assert_allclose(
            engine.run({"input": images})["logits"], reference.run({"input": images})["logits"], atol=1e-2
        )
        assert engine.latency_ms({"input": images}) > 0
