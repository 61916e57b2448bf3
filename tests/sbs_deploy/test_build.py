"""`sbs-deploy build` on a whole run: controls, accuracy of changed grids, and the command a manifest stands for."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from sbs_deploy.backends.spec import ONNXRUNTIME, TENSORRT, TENSORRT_RTX, backend_labelled, import_problem
from sbs_deploy.build import integer_summary
from sbs_deploy.cli import main
from sbs_deploy.engines.rebuild import rebuild_command
from sbs_deploy.export.codes import load_arrays
from sbs_train.contract import rundir
from sbs_train.contract.rundir import Manifest, RunDir
from sbs_train.contract.validation import read_validation
from tests.sbs_deploy.corruption import save_signed
from tests.sbs_deploy.golden import golden_of, only
from tests.sbs_deploy.whole_run import make_whole_run

needs_rtx = pytest.mark.skipif(import_problem(TENSORRT_RTX) is not None, reason="needs tensorrt-rtx")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A run whose files came with it: nothing is exported, and validation is tested elsewhere."""
    monkeypatch.setattr(sys.modules["sbs_deploy.build"], "export_stage", lambda run, progress: None)
    monkeypatch.setattr(sys.modules["sbs_deploy.build"], "validate_stage", lambda run, progress: None)
    return make_whole_run(tmp_path / "a run")


def build(run: RunDir, capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[dict[str, Any], str]:
    """What the command answers in JSON, and what it says on the way."""
    capsys.readouterr()
    status = main(["build", str(run.root), "--json", *flags])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    return json.loads(printed.out.splitlines()[-1]), printed.err


FLAGS = [
    "--engine int8 --backend onnxruntime --placement plan",
    "--engine int8 --backend onnxruntime --placement-minutes 0.01 --batch-opt 2 --threads 2",
    "--engine int8 --backend onnxruntime --legalise exact --placement-minutes 0.01",
    "--engine int8 --backend onnxruntime --legalise promote --placement plan",
    "--engine fp32 --backend onnxruntime",
    pytest.param("--engine int8 --backend tensorrt-rtx", marks=needs_rtx),
    pytest.param(
        "--engine int8 --backend tensorrt-rtx --legalise promote --depthwise int8 --batch-opt 2 --batch-max 8 "
        "--optimization-level 1 --workspace-mib 64",
        marks=needs_rtx,
    ),
    pytest.param("--engine fp16 --backend tensorrt-rtx --batch-max 4", marks=needs_rtx),
]


@pytest.mark.parametrize("flags", FLAGS)
def test_a_manifest_knows_the_whole_command(run: RunDir, capsys: pytest.CaptureFixture[str], flags: str) -> None:
    """What the command of the manifest builds is current: the very engine."""
    built, _ = build(run, capsys, *flags.split())
    path = Path(built["engine"])
    backend = backend_labelled(path.name.split(".")[2])
    assert backend is not None
    words = shlex.split(rebuild_command(path, rundir.read_manifest(path), backend, run.root))
    assert words[:3] == ["sbs-deploy", "build", str(run.root)]
    assert sorted(words[3:]) == sorted(flags.split())
    again, _ = build(run, capsys, *words[3:])
    assert (again["skipped"], again["engine"]) == (True, built["engine"])


def test_the_command_of_a_tensorrt_engine() -> None:
    """Flags that no module here has."""
    settings = {"hardware_compatibility": "ampere-plus", "version_compatible": True, "refit": True}
    legal = {"activations": "exact", "depthwise": "fp16"}
    details = {"profile": {"opt": 1, "max": 1}, "settings": settings, "legal": legal}
    manifest = Manifest(sha256="0", made_from={}, details=details)
    command = rebuild_command(Path("model.int8.tensorrt.engine"), manifest, TENSORRT, Path("runs/latest"))
    assert command == (
        "sbs-deploy build runs/latest --engine int8 --backend tensorrt --depthwise fp16 --batch-max 1 "
        "--hardware-compatibility ampere-plus --version-compatible --refit"
    )


@pytest.mark.parametrize("backend", ["onnxruntime", pytest.param("tensorrt-rtx", marks=needs_rtx)])
def test_promoting_reports_the_accuracy_of_both(run: RunDir, capsys: pytest.CaptureFixture[str], backend: str) -> None:
    """Of the exact and of the promoted graph, on the golden images, against ONNX Runtime asked here."""
    golden = golden_of(run)
    assert golden.labels is not None
    logits, inputs = only(golden.outputs), only(golden.inputs)
    labels = np.where(np.arange(golden.samples) % 3 == 0, (golden.labels + 1) % logits.shape[1], golden.labels)
    save_signed({**load_arrays(run.golden), "labels": labels}, run.golden)
    built, said = build(run, capsys, "--backend", backend, "--legalise", "promote", "--placement", "plan")
    found = built["legal"]["golden"]
    exact = run.model_ort if backend == "onnxruntime" else run.model_trt
    legal = run.deploy / "legal" / f"model.int8.{backend}.onnx"
    assert found["images"] == len(labels)
    assert found["top1_exact"] == pytest.approx(top1(exact, inputs, labels))
    assert found["top1"] == pytest.approx(top1(legal, inputs, labels))
    assert found["top1_plan"] == pytest.approx(100 * float(np.mean(logits.argmax(1) == labels)))
    assert found["top1_plan"] < 70
    assert f"(top-1 {found['top1']:.2f} %, on its exact grids {found['top1_exact']:.2f} %, PyTorch" in said


@pytest.mark.parametrize("flags", ["", "--outputs layers", "--outputs none"])
def test_outputs_are_quantized_where_the_plan_has_ranges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: str
) -> None:
    monkeypatch.setattr(sys.modules["sbs_deploy.build"], "export_stage", lambda run, progress: None)
    run = make_whole_run(tmp_path / "run", ranges=True)
    built, _ = build(run, capsys, "--backend", "onnxruntime", "--placement", "plan", *flags.split())
    asked = flags.removeprefix("--outputs ") or "all"
    assert built["legal"]["outputs"] == asked
    assert built["float_layers"] == (["conv3"] if asked == "none" else [])
    validation = read_validation(run)
    assert validation is not None and validation.passed
    names = [] if asked == "none" else ["model.int8.onnxruntime.onnx"]
    assert list(validation.graphs) == names and all(one.images == 12 for one in validation.graphs.values())
    path = Path(built["engine"])
    words = shlex.split(rebuild_command(path, rundir.read_manifest(path), ONNXRUNTIME, run.root))
    again, _ = build(run, capsys, *words[3:])
    assert again["skipped"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--outputs all", "no ranges of outputs"),
        ("--outputs all --backend tensorrt-rtx", "quantizes behind layers by itself"),
        ("--outputs all --engine fp32", "quantizes nothing"),
    ],
)
def test_outputs_that_cannot_be_quantized(
    run: RunDir, capsys: pytest.CaptureFixture[str], flags: str, words: str
) -> None:
    given = [] if "--backend" in flags else ["--backend", "onnxruntime"]
    assert main(["build", str(run.root), *flags.split(), *given]) == 2
    assert words in capsys.readouterr().err


def top1(path: Path, images: np.ndarray, labels: np.ndarray) -> float:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"input": images})
    return 100 * float(np.mean(logits.argmax(1) == labels))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--backend onnxruntime --batch-max 8", "--batch-max is a setting of TensorRT"),
        ("--backend openvino --placement plan --batch-opt 8", "--batch-opt: openvino takes any batch size"),
        ("--backend tensorrt-rtx --batch-opt 64", "--batch-opt (64) <= --batch-max (32)"),
        ("--backend onnxruntime --engine fp32 --placement measured", "--engine fp32 quantizes nothing; leave it out"),
        ("--backend onnxruntime --placement-minutes 0", "--placement-minutes 0 must be above 0"),
        ("--backend onnxruntime --placement-minutes nan", "--placement-minutes nan must be above 0"),
        ("--backend onnxruntime --threads 0", "--threads 0 must be at least 1"),
        ("--backend openvino --device CPU.0", "--backend openvino has no CPU.0; choose one of CPU, GPU, NPU"),
    ],
)
def test_bad_flags_are_refused_before_any_work(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: str, words: str
) -> None:
    monkeypatch.setattr(
        sys.modules["sbs_deploy.build"], "export_stage", lambda run, progress: pytest.fail("it was exported first")
    )
    assert main(["build", str(run.root), *flags.split()]) == 2
    assert words in capsys.readouterr().err


def test_an_engine_without_any_layer_in_integers_is_called_float() -> None:
    floats = [{"layer": "stem"}, {"layer": "head"}]
    placed = {
        "precision": "int8",
        "quantized_layers": 0,
        "float_layers": [],
        "placement": {"mode": "measured", "float_layers": floats},
    }
    assert "float" in integer_summary(placed) and "INT8" not in integer_summary(placed)


def test_a_manifest_without_its_precision_is_summed_up() -> None:
    """Files of before may lack it, and fuzzing takes it away."""
    assert integer_summary({"quantized_layers": 3, "float_layers": ["head"]}).startswith("2 of 3")
