"""Rows of made-up engines: what they say of themselves, builds that differ, and controls that fit."""

import contextlib
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pytest

from sbs_deploy.backends.base import NodeTime
from sbs_deploy.engines.artifacts import Artifact
from sbs_deploy.graph.arrays import Arrays, ArraySpec, Named
from sbs_deploy.measure.protocol import Protocol
from sbs_deploy.measure.rows import Opened, open_artifact, rows_of_batch, with_layers
from sbs_train.contract.errors import SbsError
from sbs_train.contract.results import TimedRow
from tests.sbs_deploy.graphs import make_run

QUICK = Protocol(warmup_ms=0.0, warmup_iterations=1, rounds=4, block_ms=0.01, block_iterations=(2, 2))
INPUTS = {"input": np.zeros((2, 3, 8, 8), np.float32)}


class Engine:
    """Every inference takes as long as it is told."""

    settings: dict[str, Any] = {}
    inputs = outputs = (ArraySpec(name="input", dtype="float32", shape=("batch", 3, 8, 8)),)
    last_enqueue_ms: float | None = None
    last_cpu_ms: float | None = None

    def __init__(self, ms: float, device: str = "GPU", refusal: str = "") -> None:
        self.name, self.device, self.precision, self.ms, self.refusal = "x", device, "int8", ms, refusal
        self.closed = False

    def run(self, inputs: Named) -> Arrays:
        if self.refusal:
            raise SbsError(self.refusal)
        return {"logits": inputs["input"][:, :, 0, 0]}

    def latency_ms(self, inputs: Named) -> float:
        return self.ms

    def node_times(self, inputs: Named, runs: int) -> list[NodeTime]:
        raise SbsError("it has no times of layers")

    def __enter__(self) -> "Engine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closed = True


class BusyEngine(Engine):
    """Computes for `cpu_ms` of every inference on a CPU, and waits for its core for the rest."""

    def __init__(self, cpu_ms: float, ms: float) -> None:
        super().__init__(ms, device="CPU")
        self.last_cpu_ms = cpu_ms


class FullEngine(Engine):
    """What a TensorRT engine offers as well."""

    settings = {"cuda_graph": "off: asked for", "spin_wait": True, "transfers": "excluded"}

    def latency_ms(self, inputs: Named) -> float:
        self.last_enqueue_ms = 0.9 * self.ms
        return self.ms

    def node_times(self, inputs: Named, runs: int) -> list[NodeTime]:
        return [NodeTime(name="conv1 + relu", kind="CaskConvolution", ms=3.0, nodes=("conv1",))]


def artifact(path: Path, label: str = "int8", backend: str = "tensorrt", **changes: Any) -> Artifact:
    precision, _, network = label.partition(" ")
    settings: dict[str, Any] = {
        "path": path,
        "label": label,
        "backend": backend,
        "precision": precision,
        "control": bool(network),
        "on_gpu": True,
        "predicted_bops": 1e6,
        "open": lambda build, stack: stack.enter_context(Engine(1.0)),
        "source": lambda: path,
    }
    return Artifact(**(settings | changes))


def rows(*opened: Opened, root: Path) -> list[Any]:
    return rows_of_batch(list(opened), INPUTS, 2, QUICK, root)


def test_settings_and_the_hosts_time_are_in_the_row(tmp_path: Path) -> None:
    full, plain = rows(
        Opened(artifact=artifact(tmp_path / "a"), builds=[FullEngine(2.0)]),
        Opened(artifact=artifact(tmp_path / "b"), builds=[Engine(2.0)]),
        root=tmp_path,
    )
    assert full.settings == {"cuda_graph": "off: asked for", "spin_wait": True, "transfers": "excluded"}
    assert full.enqueue_p50_ms == pytest.approx(1.8)
    assert any("90% of the GPU's time" in warning for warning in full.warnings)
    assert plain.settings is None and plain.enqueue_p50_ms is None and plain.warnings == ()


def test_builds_are_measured_apart_and_pooled(tmp_path: Path) -> None:
    (row,) = rows(Opened(artifact=artifact(tmp_path / "a"), builds=[Engine(1.0), Engine(3.0)]), root=tmp_path)
    assert row.builds_p50_ms == (1.0, 3.0) and row.builds == 2
    assert row.latency_p50_ms == 2.0 and row.iterations == 16
    assert any("2 builds differ by 200.0%" in warning for warning in row.warnings)


def test_each_row_is_compared_with_its_own_control(tmp_path: Path) -> None:
    def of(label: str, backend: str, ms: float, device: str = "GPU") -> Opened:
        return Opened(artifact=artifact(tmp_path / f"{label}.{backend}", label, backend), builds=[Engine(ms, device)])

    dense, other, slim, ours, cpu = rows(
        of("fp32 dense", "tensorrt", 8.0),
        of("fp32 dense", "tensorrt-rtx", 6.0),
        of("fp32 slim", "tensorrt", 4.0),
        of("int8", "tensorrt", 2.0),
        of("int8", "onnxruntime", 1.0, "CPU"),
        root=tmp_path,
    )
    assert ours.speedup_vs_fp32 == 4.0 and ours.speedup_over == "fp32 dense.tensorrt"
    assert (dense.speedup_vs_fp32, other.speedup_vs_fp32, slim.speedup_vs_fp32) == (1.0, 1.0, 2.0)
    assert cpu.speedup_vs_fp32 is None and cpu.speedup_over is None, "another device compares nothing"


def test_a_busy_core_moves_latencies_and_no_speedup(tmp_path: Path) -> None:
    dense, ours = rows(
        Opened(artifact=artifact(tmp_path / "a", "fp32 dense"), builds=[BusyEngine(4.0, 40.0)]),
        Opened(artifact=artifact(tmp_path / "b"), builds=[BusyEngine(1.0, 1.25)]),
        root=tmp_path,
    )
    assert (ours.latency_p50_ms, ours.cpu_p50_ms, ours.quickest_ms, dense.latency_p50_ms) == (1.25, 1.0, 1.0, 40.0)
    assert ours.speedup_vs_fp32 == 4.0 == ours.faster_than(dense)
    assert any("1 of 1.25 ms" in warning for warning in ours.warnings)


def test_rounds_that_disagree_give_a_range_and_no_speedup(tmp_path: Path) -> None:
    class Drifting(Engine):
        def latency_ms(self, inputs: Named) -> float:
            self.ms *= 1.05
            return self.ms

    _, ours = rows(
        Opened(artifact=artifact(tmp_path / "a", "fp32 dense"), builds=[Engine(4.0)]),
        Opened(artifact=artifact(tmp_path / "b"), builds=[Drifting(1.0)]),
        root=tmp_path,
    )
    low, high = ours.speedup_interval
    assert ours.speedup_vs_fp32 is None and low < high < 4.0 and ours.speedup_over == "a"
    assert any("no speed-up" in warning and f"{low:.2f}x and {high:.2f}x" in warning for warning in ours.warnings)


def test_an_engine_that_refuses_is_a_reason_not_a_number(tmp_path: Path) -> None:
    refused, fine = rows(
        Opened(artifact=artifact(tmp_path / "a"), builds=[Engine(1.0), Engine(1.0, refusal="batch 2 is too large")]),
        Opened(artifact=artifact(tmp_path / "b"), builds=[Engine(1.0)]),
        root=tmp_path,
    )
    assert refused.error == "batch 2 is too large" and not isinstance(refused, TimedRow)
    assert isinstance(fine, TimedRow)


def test_builds_that_cannot_be_made_are_the_reason(tmp_path: Path) -> None:
    made: list[Engine] = []

    def open_build(build: int, stack: contextlib.ExitStack) -> Engine:
        if build == 2:
            raise SbsError("model.int8.tensorrt.onnx is gone")
        made.append(stack.enter_context(Engine(1.0)))
        return made[-1]

    said: list[str] = []
    with contextlib.ExitStack() as stack:
        opened = open_artifact(artifact(tmp_path / "a", open=open_build), 3, stack, said.append)
    assert opened.error == "model.int8.tensorrt.onnx is gone" and not opened.builds
    assert [one.closed for one in made] == [True, True]
    assert said == ["a for tensorrt: build 2 of 3", "a for tensorrt: build 3 of 3"]


def test_layers_of_an_engine_without_a_profiler(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    plain = Opened(artifact=artifact(run.model_trt), builds=[Engine(1.0)])
    full = Opened(artifact=artifact(run.model_trt), builds=[FullEngine(1.0)])
    without, timed = (
        with_layers(row, one, INPUTS, ["conv1"])
        for row, one in zip(rows(plain, full, root=run.root), (plain, full), strict=True)
    )
    assert isinstance(without, TimedRow) and isinstance(timed, TimedRow)
    assert without.layers is None and without.layers_error == "it has no times of layers"
    assert timed.layers is not None and timed.layers_error is None
    assert [(one.layer, one.ms, one.share) for one in timed.layers] == [("conv1", 3.0, 1.0)]
