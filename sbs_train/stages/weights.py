"""Save and load weights, and restore finished stages."""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from sbs_train.contract import rundir, trust
from sbs_train.contract.config import TrainConfig, load_config, require_named
from sbs_train.contract.documents import metrics_of, require_one_run
from sbs_train.contract.manifest import PLAN_KEY
from sbs_train.contract.plan import FLOAT_BITS, Plan, load_plan
from sbs_train.contract.rundir import RunDir
from sbs_train.inputs.state import load_state
from sbs_train.inputs.tensors import fitting_state, tensors_of
from sbs_train.network.network import Network
from sbs_train.stages.checkpoint import write_checked
from sbs_train.stages.named import model_for, network_of, network_of_plan
from sbs_train.stages.plans import apply_clips, apply_plan
from sbs_train.tasks.load import task_of


def save_weights(state: dict[str, Tensor], path: Path) -> None:
    """Write a model's state (safetensors); the old file is replaced once the new one was read back."""
    write_checked(path, _packed(state))


def hash_of_state(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of names and values."""
    return hashlib.sha256(_packed(state)).hexdigest()


def load_weights(model: nn.Module, path: Path, made_by: str | None = None) -> None:
    """Read a model's state (safetensors), strictly.

    Args:
        made_by: for a file of a run, the command that makes it again; its bytes must then match its manifest. None
            for a file that the user names.

    Raises:
        SbsError: the file is missing or damaged, belongs to another model, or has values that are not finite.
    """
    load_state(model, fitting_state(str(path), tensors_of(path, _content(path, made_by)), model.state_dict()))


def stage_files(run: RunDir, stage: str) -> tuple[Path, Path | None]:
    """Paths of the weights and the plan of a stage; fp32 has no plan, and calibration is one JSON file."""
    if stage == "finetune":
        return run.weights, run.plan
    if stage == "calibration":
        return run.checkpoints / "calibration.json", None
    weights = run.checkpoints / f"{stage}.safetensors"
    return weights, (run.checkpoints / f"{stage}.plan.json" if stage == "search" else None)


def restore(run: RunDir, stage: str = "finetune") -> tuple[Network, Plan | None]:
    """The network of a finished stage, in eval mode on the CPU, and its plan.

    With a plan, clip values come from the plan, not from the weights file.

    Raises:
        SbsError: the stage is missing, its files do not fit together, or the run names code that is not trusted.
    """
    config = load_config(run.config)
    require_one_run(run)
    require_named(config, str(run.root))
    trust.require_model(config.model, run.config)
    weights, plan_path = stage_files(run, stage)
    made_by = maker_of(run)
    run.require(weights, made_by)
    if plan_path is None:
        trust.require_task(config.task, run.config)
        task = task_of(config)
        network = network_of(config, task, model_for(config, task))
        # Float weights belong to the network before its layers are swapped.
        load_float_weights(network, weights, made_by)
        network.model.eval()
        return network, None
    run.require(plan_path, made_by)
    plan = load_plan(plan_path, rundir.require_whole(weights, made_by).details.get(PLAN_KEY))
    trust.require_model(plan.model.name, plan_path)
    network = network_of_plan(_config_of(plan, config), plan)
    if network.quantized:
        signed_adds = [(add.signed_lhs, add.signed_rhs) for add in plan.adds]
        network.set_grids({row.name: row.signed_a for row in plan.layers}, signed_adds)
    load_weights(network.model, weights, made_by)
    apply_plan(network, plan)
    apply_clips(network, plan)
    network.model.eval()
    return network, plan


def is_finished(run: RunDir, stage: str, made_from: Mapping[str, str]) -> bool:
    """Whether a stage's weights, plan and metrics are all there, and made from exactly these inputs."""
    weights, plan_path = stage_files(run, stage)
    if not rundir.is_current(weights, made_from):
        return False
    if stage != "calibration" and stage not in metrics_of(run).model_fields_set:
        return False
    if plan_path is None:
        return True
    return plan_path.is_file() and rundir.read_manifest(weights).details.get(PLAN_KEY) == rundir.sha256_of(plan_path)


def finish(run: RunDir, stage: str, made_from: Mapping[str, str]) -> None:
    """Write the manifest that marks a stage as finished; the last step of a stage."""
    weights, plan_path = stage_files(run, stage)
    details = {PLAN_KEY: rundir.sha256_of(plan_path)} if plan_path else {}
    rundir.write_manifest(weights, made_from, details=details)


def maker_of(run: RunDir) -> str:
    """The command that makes missing or damaged files of a run again."""
    return f"sbs-train --resume --out {run.root}"


def _config_of(plan: Plan, config: TrainConfig) -> TrainConfig:
    """`config` with the network's settings from its plan: config.json may belong to a later attempt."""
    quantized = plan.bits_weights != [FLOAT_BITS]
    mode = "prune" if not quantized else ("joint" if config.mode == "prune" else config.mode)
    search = dataclasses.replace(
        config.search,
        bits_weights=tuple(plan.bits_weights),
        bits_activations=tuple(plan.bits_activations),
        quantize_residual=bool(plan.adds),
        standardise=plan.standardise,
    )
    # Without a cost all of these bits are candidates.
    return dataclasses.replace(config, grid=plan.grid, mode=mode, search=search, cost=None, max_bops=None)


def load_float_weights(network: Network, path: Path, made_by: str | None = None) -> None:
    """Load float weights into a swapped network; its clip values stay. `made_by` and errors: see `load_weights`."""
    content = _content(path, made_by)
    load_state(network.model, fitting_state(str(path), tensors_of(path, content), network.float_state()), strict=False)


def _packed(state: Mapping[str, Tensor]) -> bytes:
    return to_safetensors({name: value.detach().cpu().contiguous().clone() for name, value in state.items()})


def _content(path: Path, made_by: str | None) -> bytes:
    return rundir.read_bytes(path) if made_by is None else rundir.read_whole(path, made_by)
