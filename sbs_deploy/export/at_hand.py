"""Export of a searched model that is at hand: no name builds it, so everything a device needs is written at once."""

import copy
import itertools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import onnx
from torch import nn

from sbs_deploy.export.float_onnx import onnx_from_module
from sbs_deploy.export.golden import golden_arrays
from sbs_deploy.export.pipeline import Progress, export_quantized, export_slim, names_of, run_step, sources_of
from sbs_deploy.graph.model_file import save_onnx
from sbs_train.contract import rundir
from sbs_train.contract.config import CalibrateConfig, save_config
from sbs_train.contract.errors import SbsError
from sbs_train.contract.manifest import PLAN_KEY
from sbs_train.contract.plan import Plan, TensorSpec, load_plan, save_plan
from sbs_train.contract.rundir import RunDir
from sbs_train.example import Example
from sbs_train.network.carried import network_of, refuse_other
from sbs_train.network.network import Network
from sbs_train.quant.folding import plain_copy
from sbs_train.stages.arguments import examples_of
from sbs_train.stages.integers import snap_biases
from sbs_train.stages.outputs import with_ranges
from sbs_train.stages.plans import apply_clips, apply_plan, plan_of_network
from sbs_train.stages.weights import hash_of_state, save_weights

RANGE_BATCHES = 8
"""Golden batches that ranges are found on where no other inputs are given."""

Dynamic = Mapping[str, Mapping[int, str]]


def export_at_hand(
    model: nn.Module,
    plan: Plan,
    out: Path,
    *,
    golden: Iterable[Any],
    calibration: Iterable[Any] | None,
    dynamic: Dynamic | None,
    progress: Progress,
) -> RunDir:
    """Write a run directory; `sbs_deploy.export` explains the arguments and the errors."""
    if not isinstance(plan, Plan):
        raise SbsError(f"plan is of type {type(plan).__name__}; give what Search.finish() returned")
    for name, batches in (("golden", golden), ("calibration", [] if calibration is None else calibration)):
        if not isinstance(batches, Iterable):
            raise SbsError(
                f"{name} is of type {type(batches).__name__}; give batches of inputs, such as a list of them"
            )
    axes: object = {} if dynamic is None else dynamic
    if not isinstance(axes, Mapping) or not all(isinstance(one, Mapping) for one in axes.values()):
        raise SbsError(f'dynamic is {dynamic!r}; give axes by input, such as {{"x": {{0: "batch", 2: "height"}}}}')
    inputs = iter(golden)
    first = list(itertools.islice(inputs, RANGE_BATCHES))
    if not first:
        raise SbsError("golden is empty; give a batch of inputs or more, in the form of example_inputs")
    if not all(Example.of(one).samples for one in first):
        raise SbsError("a golden batch holds no samples; give one or more")
    network, found = _frozen(
        model, plan, first if calibration is None else calibration, _compressed(out, model, plan, dynamic)
    )
    # The dense graph comes first: what torch cannot export shall fail before anything is written.
    dense = onnx_from_module(plain_copy(network.model), network.example, names=names_of(found), dynamic=dynamic)
    found = _opened(found, dense) if dynamic else found
    samples = ((Example.of(one), None) for one in itertools.chain(first, inputs))
    arrays = golden_arrays(network, found, samples)
    run = rundir.create_run(out)
    with rundir.locked(run.root, "sbs_deploy.export"):
        if not _is_compressed(run):
            save_config(network.config, run.config)
            save_plan(found, run.plan)
            save_weights(network.model.state_dict(), run.weights)
            rundir.write_manifest(run.weights, {}, details={PLAN_KEY: rundir.sha256_of(run.plan)})
        trained = sources_of(run.plan, run.weights)
        run.deploy.mkdir(exist_ok=True)
        _write("dense float model", [run.model_fp32], trained, progress, lambda: save_onnx(dense, run.model_fp32))
        slim = [run.codes, run.model_slim]
        _write("slim model", slim, trained, progress, lambda: export_slim(run, network, found, dynamic))
        _write("golden outputs", [run.golden], trained, progress, lambda: arrays.save(run.golden))
        quantized = [run.model_trt, run.model_ort]
        made_from = sources_of(run.plan, run.model_slim, run.codes)
        _write("quantized models", quantized, made_from, progress, lambda: export_quantized(run))
    return run


def _write(
    what: str, artifacts: list[Path], made_from: dict[str, str], progress: Progress, make: Callable[[], None]
) -> None:
    """`run_step` of artifacts that are never current: golden samples and names of axes are no part of `made_from`."""
    for artifact in artifacts:
        rundir.manifest_path(artifact).unlink(missing_ok=True)
    run_step(what, artifacts, made_from, progress, make)


def _is_compressed(run: RunDir) -> bool:
    """Whether `sbs_train.compress` wrote the run's plan and weights, which then stay."""
    return rundir.is_file(rundir.manifest_path(run.weights)) and bool(rundir.read_manifest(run.weights).made_from)


def _compressed(out: Path, model: nn.Module, plan: Plan, dynamic: Dynamic | None) -> bool:
    """`_is_compressed` of the directory; SbsError if its plan is not the one to export."""
    run = RunDir(out)
    if not _is_compressed(run):
        return False
    other = (
        "whose plan is another one" if load_plan(run.plan) != plan else "without axes of open size" if dynamic else ""
    )
    if not other and hash_of_state(network_of(model).model.state_dict()) != rundir.sha256_of(run.weights):
        other = "whose weights are not those of the model now"
    if other:
        raise SbsError(f"{out} holds a run of sbs_train.compress, {other}; export to a new directory")
    return True


def _frozen(model: nn.Module, plan: Plan, calibration: Iterable[Any], finished: bool) -> tuple[Network, Plan]:
    """A copy of the model's network on the CPU, frozen to the plan, and the plan with the model's clip values.

    `finished`: the plan has the clip values and the ranges, and biases fit it.
    """
    network = network_of(copy.deepcopy(network_of(model).model).cpu())
    refuse_other(network, plan)
    apply_plan(network, plan)
    network.model.eval()
    if finished:
        apply_clips(network, plan)
        return network, plan
    found = plan_of_network(network, {group.id: group.kept for group in plan.groups})
    if not network.quantized:
        return network, found
    apply_clips(network, found)
    snap_biases(network, found)
    try:
        return network, with_ranges(network, found, examples_of(calibration), CalibrateConfig())
    except SbsError:
        raise
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:  # torch's errors for inputs that do not fit
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise SbsError(
            f"the model cannot run calibration or golden: {reason}; give inputs like example_inputs"
        ) from error


def _opened(plan: Plan, graph: onnx.ModelProto) -> Plan:
    """The plan with the names of all axes whose sizes vary in the graph."""

    def axes(tensors: list[TensorSpec], values: Iterable[onnx.ValueInfoProto]) -> list[TensorSpec]:
        return [
            spec.model_copy(
                update={
                    "shape": [
                        dim.dim_param if dim.dim_param and isinstance(size, int) else size
                        for size, dim in zip(spec.shape, value.type.tensor_type.shape.dim, strict=True)
                    ]
                }
            )
            for spec, value in zip(tensors, values, strict=True)
        ]

    return plan.model_copy(
        update={"inputs": axes(plan.inputs, graph.graph.input), "outputs": axes(plan.outputs, graph.graph.output)}
    )
