"""Placements of a run's engines, from their manifests."""

from dataclasses import dataclass

from sbs_deploy.placement.words import ship_advice
from sbs_train.contract import rundir
from sbs_train.contract.errors import SbsError
from sbs_train.contract.placement import EngineDetails, Placement
from sbs_train.contract.rundir import RunDir


@dataclass(frozen=True, kw_only=True)
class EnginePlacement:
    """How the precisions of an engine's layers were chosen."""

    engine: str
    placement: Placement

    @property
    def advice(self) -> str | None:
        """A sentence on the float control to ship; None if the engine is fast enough."""
        advice = ship_advice(self.placement)
        return advice and f"{self.engine}: {advice}"


def engine_placements(run: RunDir) -> list[EnginePlacement]:
    """Measured placements; a damaged manifest is reported by the engine's row in bench.json."""
    found = []
    for path in sorted(run.engines.glob("model.*.*.*")):
        if path.suffix not in (".engine", ".onnx"):
            continue
        try:
            placement = EngineDetails.model_validate(rundir.read_manifest(path).details).placement
        except SbsError:
            continue
        if placement is not None and placement.mode == "measured":
            found.append(EnginePlacement(engine=path.name, placement=placement))
    return found
