"""`sbs-deploy profile-device` from the command line."""

import json
import os
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import onnx
import pytest
from rich.console import Console

from sbs_deploy.backends import runtime
from sbs_deploy.backends.base import BuiltEngine, NodeTime
from sbs_deploy.backends.request import BatchProfile, Request
from sbs_deploy.backends.runtime import build_engine
from sbs_deploy.backends.spec import TENSORRT_RTX
from sbs_deploy.cli import main
from sbs_deploy.measure.devices import session
from sbs_deploy.measure.devices.command import device_table, summary
from sbs_train.contract.device import DeviceModel, HeldOut, load_device
from tests.sbs_deploy.devices import device_of
from tests.sbs_deploy.measure.devices.formula import Formula
from tests.sbs_deploy.measure.devices.networks import residual_graph, residual_network

pytest.importorskip("onnxruntime")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "residual.onnx"
    onnx.save(residual_graph(), path)
    return path


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sbs_deploy.measure.devices.profile.VISITS", 1)
    for name, value in (("ROUNDS", 1), ("BLOCK_MS", 0.5), ("PROFILED_MS", 1.0), ("RUNS", (2, 3))):
        monkeypatch.setattr(session, name, value)


def call(*arguments: object) -> int:
    return main(["profile-device", *map(str, arguments)])


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_file_is_measured_on_a_cpu(
    backend: str, model: Path, tmp_path: Path, fast: None, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(backend)
    out = tmp_path / "device.json"
    assert call("--backend", backend, "--models", model, "--out", out, "--points", 2, "--json") == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out.splitlines()[-1])
    device = load_device(out)
    assert (device.target, device.batch, device.threads) == (backend, 1, 1)
    (network,) = device.networks
    assert network.input == [3, 8, 8] and document["networks"][0]["quantized_ms"] == network.quantized_ms > 0
    assert device.held_out.model_dump() == document["held_out"] and device.held_out.networks
    assert "error at networks that were not used" in captured.out and "profile" not in captured.out.splitlines()[0]
    stem = device.surfaces[network.layers[0].surface]
    assert (stem.kind, stem.channels_in, stem.channels_out) == ("conv", [3], [4, 16])


def test_a_model_by_name_is_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    Formula().install(monkeypatch)
    out = tmp_path / "device.json"
    options = ("--input", "1,8,8", "--width", 4)
    assert call("--backend", "onnxruntime", "--models", "resnet20", "--out", out, *options) == 0
    device = load_device(out)
    assert (device.networks[0].model, len(device.networks[0].layers)) == ("resnet20", 22)
    surfaces = {step.surface for step in device.networks[0].layers}
    assert len(surfaces) < 15, "layers that are alike share a surface"


@pytest.mark.parametrize("lay", [os.mkfifo, lambda path: path.symlink_to("elsewhere")])
def test_where_nothing_can_be_written_nothing_is_measured(
    lay: Callable[[Path], None], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bad" / "device.json"
    out.parent.mkdir()
    lay(out)
    assert call("--backend", "onnxruntime", "--models", model, "--out", out) == 2
    assert "not a regular file" in capsys.readouterr().err
    assert list(out.parent.iterdir()) == [out], "no cache either"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--models", "nothing"), "unknown model nothing"),
        (("--models", "missing.onnx"), "missing.onnx is missing"),
        (("--models", "resnet20", "resnet20"), "named twice"),
        (("--models", "resnet20", "--input", "3,8"), "such as 3,224,224"),
        (("--models", "resnet20", "--points", "1"), "at least 2"),
        (("--models", "resnet20", "--batch", "0"), "--batch 0 must be at least 1"),
        (("--models", "resnet20", "--time-limit-minutes", "0"), "must be above 0"),
        (("--models", "torchvision:vit_b_16", "--time-limit-minutes", "-1"), "must be above 0"),
    ],
)
def test_bad_input_is_one_line(
    options: tuple[str, ...], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("--backend", "onnxruntime", "--out", tmp_path / "device.json", *options) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sbs-deploy: error: ")]
    assert words in line
    assert not (tmp_path / "device.json").exists()


def test_a_directory_is_refused_before_anything_is_measured(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    formula = Formula().install(monkeypatch)
    out = tmp_path / "results"
    out.mkdir()
    assert call("--backend", "onnxruntime", "--models", model, "--out", out) == 2
    assert f"name a file, such as {out / 'device.json'}" in capsys.readouterr().err.replace("\n", "")
    assert formula.visits == 0 and not list(tmp_path.glob("**/*.jsonl"))


def test_a_gpu_that_is_not_there_is_said_at_once(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sbs_deploy.machine.clocks.gpu_name", lambda: None)
    out = tmp_path / "device.json"
    assert call("--backend", "tensorrt-rtx", "--models", model, "--out", out) == 2
    assert "is measured on a GPU and none was found" in capsys.readouterr().err


class FakeEngine:
    """An engine of a GPU, whose profiler knows the layers by their ONNX nodes; means are all it has."""

    name = device = "fake"
    precision = "int8"
    settings: dict[str, Any] = {}
    last_enqueue_ms = last_cpu_ms = None

    def run(self, inputs: Any) -> Any:
        return inputs

    def latency_ms(self, inputs: Any) -> float:
        return 0.5

    def node_times(self, inputs: Any, runs: int) -> list[NodeTime]:
        names = ("stem", "expand", "depthwise", "project", "branch", "head")
        layers = [NodeTime(name=f"{n} + relu", kind="CaskConvolution", ms=0.25, nodes=(n,)) for n in names]
        return [*layers, NodeTime(name="Reformatting CopyNode", kind="Reformat", ms=0.125)]

    def __enter__(self) -> "FakeEngine":
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing to free."""


def test_tensorrt_is_built_in_half_precision_and_profiled_by_the_same_code(
    model: Path, tmp_path: Path, fast: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[tuple[Request, set[int]]] = []

    def build_engine(source: Path, destination: Path, request: Request, *, made_from: Any) -> BuiltEngine:
        built.append((request, {tensor.data_type for tensor in onnx.load(source).graph.initializer}))
        return BuiltEngine(path=destination, skipped=False, details={})

    monkeypatch.setattr("sbs_deploy.machine.clocks.gpu_name", lambda: "a fake GPU")
    for place in ("command", "profile"):
        monkeypatch.setattr(
            f"sbs_deploy.measure.devices.{place}.require_module", lambda backend: type("M", (), {"__version__": "11"})
        )
    monkeypatch.setattr(runtime, "build_engine", build_engine)
    monkeypatch.setattr(runtime, "open_engine", lambda *arguments, **options: FakeEngine())
    out = tmp_path / "device.json"
    assert call("--backend", "tensorrt", "--models", model, "--out", out, "--points", 2, "--batch", 4) == 0
    device = load_device(out)
    assert (device.device, device.threads, device.batch) == ("a fake GPU", None, 4)
    assert device.networks[0].quantized_ms == 0.5
    int8 = [types for request, types in built if request.precision == "int8"]
    assert {request.backend.name for request, _ in built} == {"tensorrt"}
    assert {request.precision for request, _ in built} == {"int8", "fp16", "fp32"}
    assert all(request.profile == BatchProfile(opt=4, max=4) for request, _ in built)
    assert all(onnx.TensorProto.INT8 in types and onnx.TensorProto.FLOAT16 in types for types in int8)


@pytest.mark.slow
def test_tensorrt_rtx_builds_a_slim_variant_without_a_gpu(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    network = residual_network()
    variant = network.variants(2)[-1]
    source = tmp_path / "variant.onnx"
    onnx.save(network.graph(variant, TENSORRT_RTX), source)
    request = Request(backend=TENSORRT_RTX, precision="int8", profile=BatchProfile(opt=4, max=4))
    built = build_engine(source, tmp_path / "variant.engine", request, made_from={})
    assert built.path.stat().st_size > 10_000


def device_with(error: float = 0.01, **changes: Any) -> DeviceModel:
    held_out = HeldOut(networks=3, median_error=error, worst_error=2 * error)
    return device_of("onnxruntime").model_copy(update={"held_out": held_out, **changes})


def test_large_errors_are_a_warning_of_one_line() -> None:
    lines = summary(device_with(0.06), ["none"])
    (warning,) = [line for line in lines if line.startswith("warning: ")]
    assert "larger --batch" in warning
    assert "error at networks that were not used: 6.0% (median) and 12.0% (worst) of 3" in lines
    assert not any("warning" in line for line in summary(device_with(0.04), ["none"]))


def test_what_a_change_of_precision_costs_is_in_the_table() -> None:
    network = device_with().networks[0].model_copy(update={"switch_us": 2.5, "switch_ns": 0.25})
    text = StringIO()
    Console(file=text, width=200).print(device_table(device_with(networks=[network])))
    assert "2.5 us + 0.25 ns an element" in text.getvalue()


@pytest.mark.parametrize(("batch", "words"), [(1, "those of one image"), (8, "those of a batch of 8 images")])
def test_milliseconds_are_of_a_batch(batch: int, words: str) -> None:
    assert summary(device_with(batch=batch), ["none"])[0].endswith(words)
