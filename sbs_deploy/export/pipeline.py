"""The whole export: plan and weights to ONNX files, in steps that are skipped if their inputs are unchanged.

Torch is imported only by the steps that need it.
"""

import importlib.metadata
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from sbs_deploy.export.codes import load_codes, save_codes
from sbs_deploy.export.dialects import ORT, TRT
from sbs_deploy.export.qdq import quantized_onnx
from sbs_deploy.graph.model_file import load_onnx, save_onnx
from sbs_train.contract import rundir
from sbs_train.contract.plan import Plan, load_plan
from sbs_train.contract.rundir import RunDir

if TYPE_CHECKING:
    from sbs_train.network.network import Network

FORMAT = "6"
"""Version of the exported files; raise it when the same inputs give other files."""


Progress = Callable[[str], None]
Sources = dict[str, str]


def export_run(run: RunDir, *, progress: Progress) -> None:
    """Write every ONNX file and golden.npz, each with its manifest; current files are skipped.

    Raises:
        SbsError: plan or weights are missing, damaged or of different models, or cannot be exported.
    """
    fp32 = run.checkpoints / "fp32.safetensors"
    made_by = f"sbs-train --resume --out {run.root}"
    for path in (run.plan, run.weights, fp32, run.config):
        run.require(path, made_by)
    load_plan(run.plan)
    trained = sources_of(run.plan, run.weights)
    config = rundir.sha256_of(run.config)
    run_step("dense float model", [run.model_fp32], sources_of(fp32), progress, lambda: _export_dense(run))
    restored = cache(partial(_restored, run))
    run_step("slim model", [run.codes, run.model_slim], trained, progress, lambda: export_slim(run, *restored()))
    golden = {**trained, run.config.name: config}
    run_step("golden outputs", [run.golden], golden, progress, lambda: _export_golden(run, *restored()))
    slim = sources_of(run.plan, run.model_slim, run.codes)
    quantized = [run.model_trt, run.model_ort]
    run_step("quantized models", quantized, slim, progress, lambda: export_quantized(run))


def sources_of(*paths: Path) -> Sources:
    """Hashes of files that an artifact is made from, for its manifest."""
    return {"format": FORMAT, **{path.name: rundir.sha256_of(path) for path in paths}}


def run_step(
    what: str, artifacts: list[Path], made_from: Sources, progress: Progress, make: Callable[[], None]
) -> None:
    """Run `make` unless all its artifacts are current, then write their manifests."""
    if all(rundir.is_current(artifact, made_from) for artifact in artifacts):
        progress(f"export: {what} is current")
        return
    progress(f"export: {what}")
    make()
    versions = {name: importlib.metadata.version(name) for name in ("torch", "torch-pruning", "onnx", "onnx_ir")}
    for artifact in artifacts:
        rundir.write_manifest(artifact, made_from, versions=versions)


def _export_dense(run: RunDir) -> None:
    from sbs_deploy.export.float_onnx import onnx_from_module
    from sbs_train.quant.folding import plain_copy
    from sbs_train.stages.weights import restore

    network, _ = restore(run, "fp32")
    names = names_of(load_plan(run.plan))
    save_onnx(onnx_from_module(plain_copy(network.model), network.example, names=names), run.model_fp32)


def names_of(plan: Plan) -> tuple[list[str], list[str]]:
    """Names of the network's inputs and outputs."""
    return [one.name for one in plan.inputs], [one.name for one in plan.outputs]


def _restored(run: RunDir) -> "tuple[Network, Plan]":
    from sbs_train.stages.weights import restore

    network, plan = restore(run)
    assert plan is not None
    return network, plan


def export_slim(
    run: RunDir, network: "Network", plan: Plan, dynamic: Mapping[str, Mapping[int, str]] | None = None
) -> None:
    """Write the slim network and its codes; `dynamic` as in `onnx_from_module`."""
    from sbs_deploy.export.float_onnx import codes_in, slim_onnx
    from sbs_deploy.export.slim import slim_network

    slim = slim_network(network, plan)
    graph = slim_onnx(slim, network.example, names_of(plan), dynamic)
    save_onnx(graph, run.model_slim)
    save_codes(codes_in(graph, slim.codes), run.codes)


def _export_golden(run: RunDir, network: "Network", plan: Plan) -> None:
    from sbs_deploy.export.golden import golden_arrays
    from sbs_train.contract.trust import require_task
    from sbs_train.stages.named import model_of
    from sbs_train.tasks.feed import Feed
    from sbs_train.tasks.load import task_of

    require_task(network.config.task, run.config)
    feed = Feed(task=task_of(network.config))
    golden_arrays(network, plan, feed.golden(), model_of(network.spec, plan.inputs[0].sample)).save(run.golden)


def export_quantized(run: RunDir) -> None:
    """Write both dialects of the slim network with Q/DQ."""
    slim, codes = load_onnx(run.model_slim), load_codes(run.codes)
    plan_sha256 = rundir.sha256_of(run.plan)
    for dialect, path in ((TRT, run.model_trt), (ORT, run.model_ort)):
        save_onnx(quantized_onnx(slim, codes, dialect, plan_sha256=plan_sha256), path)
