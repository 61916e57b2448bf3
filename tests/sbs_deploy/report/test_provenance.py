import html
from pathlib import Path
from typing import Any

import pytest

from sbs_deploy.backends.spec import OPENVINO_GPU, TENSORRT_RTX
from sbs_deploy.report.codes import code_histograms
from sbs_deploy.report.ledger import make_ledger
from sbs_deploy.report.page import page_from_ledger
from sbs_deploy.report.provenance import train_command
from sbs_train.cli import main
from sbs_train.contract import rundir
from sbs_train.contract.config import TrainConfig, load_config, to_dict
from sbs_train.contract.device import save_device
from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import load_plan
from sbs_train.contract.rundir import RunDir
from sbs_train.recipes import RECIPES
from tests.sbs_deploy.devices import device_of
from tests.sbs_deploy.graphs import make_run
from tests.sbs_deploy.report.runs import bench_row, measured_run


def command_of(tmp_path: Path, config: TrainConfig) -> str | None:
    run = rundir.create_run(tmp_path)
    rundir.write_json(run.config, to_dict(config))
    return train_command(run)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_its_name(tmp_path: Path, recipe: str) -> None:
    expected = "sbs-train" if recipe == "digits-resnet20" else f"sbs-train {recipe}"
    assert command_of(tmp_path, RECIPES[recipe]) == expected


ARGUMENTS = [
    [],
    ["--seed", "3", "--target", "30x", "--search.epochs", "4", "--search.bits-weights", "4", "8"],
    ["fashion-mnist-resnet20", "--search.no-quantize-residual", "--sync-batchnorm", "--finetune.milestones", "2", "4"],
    ["--model", "a name; rm -rf", "--search.metric", "error", "--search.lambda", "0.5"],
]


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_the_command_gives_the_settings_back(
    tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the command line makes of the command is what it was made of."""
    import shlex

    seen: list[TrainConfig] = []

    def train(config: TrainConfig, out: Path, *, fresh: bool) -> None:
        seen.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr("sbs_train.stages.train.train", train)
    main([*arguments, "--out", str(tmp_path / "out")])
    command = command_of(tmp_path / "run", seen[0])
    assert command is not None
    main([*shlex.split(command)[1:], "--out", str(tmp_path / "out")])
    assert seen[0] == seen[1]


def test_settings_of_another_version_have_no_command(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert train_command(run) is not None and load_config(run.config).model == "resnet20"
    rundir.write_json(run.config, {"model": "resnet20", "of_tomorrow": 1})
    assert train_command(run) is None


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return make_run(tmp_path / "run")


def test_histograms_count_every_weight_once(run: RunDir) -> None:
    found = code_histograms(run, load_plan(run.plan))
    assert [one.title for one in found] == ["1 layer of 2 bits", "2 layers of 8 bits", "conv1", "conv2", "conv3"]
    sizes = {one.title: one.weights for one in found}
    assert sizes["conv1"] == 3 * 16 * 9 and sizes["2 layers of 8 bits"] == sizes["conv1"] + sizes["conv3"]
    assert all(list(one.counts) == sorted(one.counts) and min(one.counts) >= -7 for one in found)


def test_a_run_without_codes_has_no_histograms(run: RunDir) -> None:
    run.codes.unlink()
    assert code_histograms(run, load_plan(run.plan)) == ()


def add_engine(run: RunDir, name: str, *, details: dict[str, Any], error: str | None = None) -> None:
    """An engine that was built and measured, or could not be."""
    path = run.engines / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"engine")
    rundir.write_manifest(path, {}, details=details)
    bench = rundir.read_json(run.bench)
    row = bench_row(run, f"engines/{name}", 2.0, {layer.name: 0.1 for layer in load_plan(run.plan).layers})
    more = {"label": "int8", "precision": "int8", "control": False, "error": error, "backend": name.split(".")[2]}
    bench["rows"].append(row | more)
    rundir.write_json(run.bench, bench)


def commands_of(run: RunDir) -> list[str]:
    page = page_from_ledger(make_ledger(run))
    start = page.index("<pre><code>", page.index("<h2>Provenance</h2>")) + len("<pre><code>")
    return html.unescape(page[start : page.index("</code>", start)]).splitlines()


def test_every_engine_that_was_measured_is_built_again_as_it_was(tmp_path: Path) -> None:
    run = measured_run(tmp_path / "run")
    add_engine(run, f"model.int8.{OPENVINO_GPU.label}.onnx", details={})
    add_engine(run, f"model.fp8.{TENSORRT_RTX.label}.engine", details={"profile": {"opt": 8, "max": 32}})
    add_engine(run, "model.int8.openvino.onnx", details={}, error="cannot run here")
    build = "sbs-deploy build runs/latest --engine"
    assert commands_of(run)[1:-2] == [
        f"{build} fp8 --backend tensorrt-rtx --batch-opt 8",
        f"{build} int8 --backend openvino --device GPU",
        f"{build} int8 --backend onnxruntime",
    ]


def test_without_measurements_the_usual_engine_is_built(tmp_path: Path) -> None:
    assert commands_of(make_run(tmp_path / "run"))[1:2] == ["sbs-deploy build --engine int8"]


def searched_on_a_device(run: RunDir, **more: Any) -> None:
    device = {"target": "onnxruntime", "device": "cpu <1>", "precision": "int8", "batch": 8}
    device["sha256"] = "f00d" * 16
    budget = {"unit": "ms", "expected_ms": 5.0, "reduction": 2.0, "reached": True, "device": device | more}
    rundir.write_json(run.metrics, rundir.read_json(run.metrics) | {"budget": budget})


def test_the_device_of_the_search_is_named_with_its_hash(tmp_path: Path) -> None:
    run = measured_run(tmp_path / "run")
    searched_on_a_device(run)
    text = page_from_ledger(make_ledger(run))
    about = "device.json of the search (onnxruntime on cpu &lt;1&gt;, batch 8)"
    assert f'{about}</td><td class="text"><code>f00df00df00df00d</code>' in text


def test_what_the_run_took_down_of_the_device_goes_before_the_file(tmp_path: Path) -> None:
    """The file is of another device by now, or gone."""
    run = measured_run(tmp_path / "run")
    path = tmp_path / "device.json"
    save_device(device_of("openvino"), path)
    rundir.write_json(run.config, rundir.read_json(run.config) | {"cost": str(path), "target": "5ms"})
    searched_on_a_device(run)
    for _ in range(2):
        ledger = make_ledger(run)
        assert ledger.goal is not None and ledger.goal.device is not None
        assert (ledger.goal.device.target, ledger.goal.expected_ms, ledger.goal.reached) == ("onnxruntime", 5.0, True)
        path.unlink(missing_ok=True)


def test_a_damaged_device_is_one_line(tmp_path: Path) -> None:
    run = measured_run(tmp_path / "run")
    searched_on_a_device(run, batch=0)
    with pytest.raises(SbsError, match=r"budget\.device\.batch.*make it again with `sbs-train --resume"):
        make_ledger(run)
