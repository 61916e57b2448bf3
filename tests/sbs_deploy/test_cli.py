"""The command line: exit codes, one-line errors, JSON on the last line, help without torch."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from sbs_deploy.backends.request import BuilderSettings
from sbs_deploy.cli import COMMANDS, main
from sbs_deploy.export import pipeline
from sbs_deploy.validate.run import validation_sources
from sbs_train.contract import console, rundir
from sbs_train.contract.errors import GateFailed, SbsError
from sbs_train.contract.rundir import RunDir
from sbs_train.contract.validation import Validation, write_validation
from tests.sbs_deploy.graphs import make_run

PLANNED = ("--backend", "onnxruntime", "--placement", "plan")

pytest.importorskip("onnxruntime")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A run with stand-ins for export and validation, which need torch; `calls` lists what ran."""
    run = make_run(tmp_path / "run")
    monkeypatch.setattr(pipeline, "export_run", lambda run, *, progress: progress("export: stand-in"))
    install_validation(monkeypatch, passed=True)
    return run


def install_validation(monkeypatch: pytest.MonkeyPatch, *, passed: bool) -> list[Path]:
    calls: list[Path] = []

    def validate_run(run: RunDir) -> Validation:
        calls.append(run.root)
        found = Validation(passed=passed, max_abs_diff=0.5, top1_agreement=0.9, first_divergence="layer2.conv1")
        write_validation(found, run)
        rundir.write_manifest(run.validation, validation_sources(run))
        return found

    for module in ("sbs_deploy.validate.run", "sbs_deploy.build"):
        monkeypatch.setattr(importlib.import_module(module), "validate_run", validate_run)
    return calls


def last_json(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The single line on stderr, which must be an error of ours."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("sbs-deploy: error: "), lines
    return lines[0]


def test_build_validates_and_builds(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = install_validation(monkeypatch, passed=True)
    assert main(["build", str(run.root), "--engine", "int8", *PLANNED, "--json"]) == 0
    document = last_json(capsys)
    assert Path(document["engine"]) == run.engines / "model.int8.onnxruntime.onnx"
    assert (document["backend"], document["skipped"], document["float_layers"]) == ("onnxruntime", False, ["conv3"])
    assert main(["build", str(run.root), *PLANNED, "--json"]) == 0
    assert last_json(capsys)["skipped"]
    assert len(calls) == 1, "validation is not repeated on the same files"


def test_failed_validation_stops_before_an_engine(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install_validation(monkeypatch, passed=False)
    assert main(["build", str(run.root), *PLANNED]) == 1
    assert "first diverging layer layer2.conv1" in capsys.readouterr().err
    assert not run.engines.exists()
    assert main(["validate", str(run.root), "--json"]) == 1
    assert last_json(capsys)["passed"] is False


def test_device_without_torch_uses_the_files_that_came(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["build", str(run.root), *PLANNED]) == 0
    run.model_trt.unlink()
    capsys.readouterr()
    assert main(["build", str(run.root), *PLANNED]) == 2
    assert "on a machine with torch" in error_line(capsys)


def test_bench_then_report(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(run.root), "--batch", "1", "2", "--rounds", "2", "--json"]) == 0
    rows = last_json(capsys)
    assert {row["batch"] for row in rows} == {1, 2}
    assert main(["report", str(run.root)]) == 0
    out = capsys.readouterr().out
    for word in ("stage", "score", "BOPs", "reduction", "size", "latency p50", "speed-up", "finetune", "97.75 top1"):
        assert word in out
    assert out.splitlines()[-1] == f"report: {run.report}"
    assert run.report.is_file()


def test_bench_says_why_a_control_was_not_measured(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(run.root), "--batch", "1", "2", "--rounds", "2", "--against", "fp16"]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("not measured: ")]
    assert said == ["not measured: fp16 dense on onnxruntime: onnxruntime has no FP16 convolutions on a CPU"]


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    found = last_json(capsys)
    by_name = {backend["backend"]: backend for backend in found["backends"]}
    assert by_name["onnxruntime"]["can_run"]
    for package in found["packages"]:
        assert package["version"] or package["install"].startswith("pip install")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "nowhere"], "no run at nowhere"),
        (["bench", "nowhere"], "no run at nowhere"),
        (["build", "--nope"], "Unrecognized options: --nope; see sbs-deploy --help"),
        (["build", "--engine", "int4"], "invalid choice 'int4'"),
        (["frob"], "Unrecognized options: frob"),
        ([], "Expected one of {build"),
        (["bench", "--batch", "x"], "--batch"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert message in error_line(capsys)


@pytest.mark.parametrize("command", ["build", "bench", "report"])
def test_truncated_plan(run: RunDir, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    run.plan.write_text(run.plan.read_text()[:300])
    assert main([command, str(run.root)]) == 2
    assert "plan.json is damaged" in error_line(capsys)


def test_corrupt_onnx(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    run.model_ort.write_bytes(run.model_ort.read_bytes()[:400])
    assert main(["build", str(run.root), *PLANNED]) == 2
    assert "model.ort.onnx changed after it was made" in capsys.readouterr().err.splitlines()[-1]


def test_what_a_target_cannot_do_is_said_first(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", str(run.root), "--backend", "onnxruntime", "--engine", "fp16"]) == 2
    assert "--engine fp16 is not supported by onnxruntime" in error_line(capsys)
    assert main(["build", str(run.root), "--backend", "openvino", "--engine", "fp16"]) == 2
    assert "--engine fp16 is not supported by openvino on CPU" in error_line(capsys)
    assert main(["build", str(run.root), "--backend", "onnxruntime", "--depthwise", "fp16"]) == 2
    assert "--depthwise fp16: onnxruntime has no FP16 convolutions" in error_line(capsys)
    assert main(["build", str(run.root), "--backend", "onnxruntime", "--engine", "fp32", "--legalise", "promote"]) == 2
    assert "--legalise promote: --engine fp32 quantizes nothing" in error_line(capsys)
    assert main(["build", str(run.root), "--backend", "tensorrt-rtx", "--refit"]) == 2
    assert "--refit is a setting of TensorRT that tensorrt-rtx does not have" in error_line(capsys)
    assert main(["build", str(run.root), "--backend", "tensorrt-rtx", "--optimization-level", "9"]) == 2
    assert "--optimization-level 9 must be between 0 and 5" in error_line(capsys)


def test_verbose_adds_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "nowhere", "--verbose"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("raised", "code"), [(SbsError("two\nlines"), 2), (GateFailed("gate"), 1), (KeyboardInterrupt(), 130)]
)
def test_exit_codes(raised: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def handler() -> int:
        raise raised

    assert console.run_command("sbs-deploy", handler, verbose=False) == code
    error_line(capsys)


def test_a_bug_keeps_its_traceback() -> None:
    def handler() -> int:
        raise RuntimeError("ours")

    with pytest.raises(RuntimeError):
        console.run_command("sbs-deploy", handler, verbose=False)


def test_json_refuses_what_json_has_not() -> None:
    with pytest.raises(ValueError, match="JSON"):
        console.print_json({"a": float("nan")})


def test_options_snapshot() -> None:
    """The command line is a contract: a change here is a decision."""
    import dataclasses

    common = {"json", "verbose"}
    options = {name: {f.name for f in dataclasses.fields(command)} - common for name, command in COMMANDS.items()}
    options["build"] |= {f.name for f in dataclasses.fields(BuilderSettings)}
    assert options == {
        "build": {
            *(
                "run",
                "trust",
                "model",
                "engine",
                "backend",
                "provider",
                "device",
                "legalise",
                "outputs",
                "depthwise",
                "batch_opt",
                "batch_max",
                "shapes",
                "placement",
                "placement_minutes",
                "threads",
                "builder",
            ),
            *("optimization_level", "workspace_mib", "hardware_compatibility", "version_compatible", "refit"),
        },
        "bundle": {"run", "trust", "out", "images"},
        "lint": {"model", "rules", "fix"},
        "export": {"run", "trust", "model"},
        "validate": {"run", "trust"},
        "evaluate": {"run", "trust", "backend", "engine", "device", "provider", "threads"},
        "bench": {"run", "trust", "batch", "against", "threads", "builds", "rounds", "layers"},
        "report": {"runs", "out", "markdown"},
        "doctor": set(),
        "profile-device": {
            "backend",
            "models",
            "out",
            "input",
            "classes",
            "width",
            "threads",
            "batch",
            "points",
            "time_limit_minutes",
        },
        "predict": {"run", "trust", "cost"},
    }
