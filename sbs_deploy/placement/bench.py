"""Race, profile and question the graphs of a plan on a backend; every result is kept in a file at once."""

import contextlib
import functools
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from sbs_deploy.backends.base import Engine, outputs_in_parts
from sbs_deploy.backends.request import Request
from sbs_deploy.backends.runtime import open_engine, opened_graph
from sbs_deploy.engines.controls import Control, control_engine, wanted_controls, write_graph
from sbs_deploy.export.golden_file import GoldenArrays, load_golden
from sbs_deploy.export.pipeline import Progress
from sbs_deploy.graph.arrays import Arrays, repeated
from sbs_deploy.graph.model_file import load_onnx
from sbs_deploy.legalise.graph import Legalisation, legalised
from sbs_deploy.measure.devices.session import BEHIND, step_times
from sbs_deploy.measure.protocol import Contestant, Measurement, Protocol, contestant, measure
from sbs_deploy.measure.rows import LAYER_RUNS
from sbs_deploy.placement.answers import SAMPLES, answers_of, as_good, in_words
from sbs_train.contract import rundir
from sbs_train.contract.documents import read_record
from sbs_train.contract.errors import SbsError
from sbs_train.contract.placement import Answers, RaceTimes, StepTimes, Trials
from sbs_train.contract.plan import load_plan
from sbs_train.contract.rundir import RunDir

Kept = TypeVar("Kept", Answers, RaceTimes, StepTimes)

Entrant = Legalisation | str
"""A graph of the plan, or the label of a float control."""
Race = Mapping[Entrant, Measurement]

BLOCK_MS = 15.0
"""Milliseconds of a graph's turn in one round."""
FEWEST, MOST = 2, 100
"""Inferences of a turn."""
ROUNDS = (7, 60)
WARM_UP_MS = (80.0, 400.0)
NEVER_LEFT_OUT = 2
"""Graphs that run although there is no time: the best one, and one to compare it with."""
FINAL_PART = 0.1
"""Part of the minutes that the last race needs."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is placed, and how it is measured."""

    run: RunDir
    base: Legalisation
    request: Request
    """The request for engines, with its batch size."""
    threads: int
    minutes: float
    layers: tuple[str, ...]
    """Names of all layers of the plan."""
    batch: int
    """Samples of one inference."""
    inputs: Arrays
    """One batch."""

    @property
    def process_clock(self) -> bool:
        """Whether times are CPU times of the process: another process then hardly moves them."""
        return self.request.backend.on_cpu and self.threads == 1


class EngineBench:
    """Measures engines of graphs that are made in a temporary folder.

    Args:
        trials: file of the results, read at the start if it exists.
        folder: where graphs and engines are kept until the end.
    """

    def __init__(self, job: Job, trials: Path, folder: Path, progress: Progress) -> None:
        self.job, self.path, self.folder, self.progress = job, trials, folder, progress
        self.trials = read_record(trials, Trials, f"delete {trials}") if trials.is_file() else Trials()
        self.counted: dict[str, float] = {}
        """Seconds of every measurement that was used, also of those from the file: the next build decides alike."""

    def race(self, graphs: Sequence[Legalisation], part: float, *, controls: bool = False) -> Race:
        """Milliseconds by round of graphs that take turns; equal graphs share their times.

        Graphs that cannot run are left out, and where time is short the last ones; the first two are not.

        Args:
            part: part of all minutes that the race may take.
            controls: whether the float controls race as well.
        """
        controls_here = wanted_controls(self.job.request.backend, ("fp32", "slim")) if controls else []
        labels: dict[str, Entrant] = {self._label(one): one for one in graphs}
        labels |= {one.label: one.label for one in controls_here}
        key = rundir.hash_of([*labels, part])
        found = self._once(self.trials.races, key, lambda: self._raced(graphs, controls_here, part))
        if not found.rounds_ms.keys() <= labels.keys() or self._label(graphs[0]) not in found.rounds_ms:
            raise SbsError(f"{self.path}: a race names other graphs than those of this plan; delete {self.path}")
        return {
            labels[label]: Measurement(rounds_ms=tuple((ms,) for ms in rounds))
            for label, rounds in found.rounds_ms.items()
        }

    def profile(self, graph: Legalisation | None) -> dict[str, float]:
        """Milliseconds by layer, with what follows the layer, of a graph or of the pruned float network (None).

        They are shares of the latency; empty where the backend has no profiler.
        """
        key = "slim" if graph is None else self._label(graph)
        return self._once(self.trials.profiles, key, lambda: self._profiled(graph)).ms

    def accurate(self, graph: Legalisation) -> bool:
        """Whether the answers on golden samples are near those of the plan's graph."""
        plan, found = self._answers(self.job.base), self._answers(graph)
        good = as_good(found, plan, self._golden.samples)
        if not good:
            self.progress(f"placement: {self.name(graph)} is faster and not taken: {in_words(found, plan)}")
        return good

    def has_time(self) -> bool:
        """Whether minutes are left, besides those of the last race."""
        return self._spent_s < (1 - FINAL_PART) * 60 * self.job.minutes

    def name(self, graph: Legalisation) -> str:
        """What a graph is, for people."""
        form = form_of(graph, self.job.base)
        floats = (
            f"{len(graph.float_layers)} layers in float" if graph.float_layers else "all planned layers in integers"
        )
        return ", ".join(filter(None, (form, floats)))

    @functools.cached_property
    def _golden(self) -> GoldenArrays:
        return load_golden(self.job.run.golden, load_plan(self.job.run.plan)).first(SAMPLES)

    def _label(self, graph: Legalisation) -> str:
        return rundir.hash_of(asdict(graph))[:16]

    def _raced(self, graphs: Sequence[Legalisation], controls: Sequence[Control], part: float) -> RaceTimes:
        budget_ms = 6e4 * self.job.minutes * part
        with contextlib.ExitStack() as stack:
            clocks, equal = self._opened(graphs, controls, budget_ms, stack)
            first_ms = {name: clock().wall_ms for name, clock in clocks.items()}
            turns_ms = {name: max(BLOCK_MS, FEWEST * ms) + ms for name, ms in first_ms.items()}
            while len(turns_ms) > NEVER_LEFT_OUT + len(controls) and ROUNDS[0] * sum(turns_ms.values()) > 2 * budget_ms:
                slow, _ = turns_ms.popitem()
                self.progress(f"placement: no time to run {len(equal.pop(slow))} of {len(graphs)} graphs")
            clocks = {name: clocks[name] for name in turns_ms}
            round_ms, warm_ms = sum(turns_ms.values()), sum(max(WARM_UP_MS[0], 5 * first_ms[name]) for name in clocks)
            rounds = int(np.clip((budget_ms - warm_ms) / round_ms, *ROUNDS)) if len(clocks) > 1 else 1
            self.progress(
                f"placement: {len(clocks) - len(controls)} graphs and {len(controls)} controls take turns, about "
                f"{(warm_ms + rounds * round_ms) / 1e3:.0f} s (spent {self._spent_s:.0f} of "
                f"{60 * self.job.minutes:.0f} s)"
            )
            protocol = Protocol(
                warmup_ms=WARM_UP_MS[0],
                warmup_max_ms=WARM_UP_MS[1],
                rounds=rounds,
                block_ms=BLOCK_MS,
                block_iterations=(FEWEST, MOST),
            )
            times = measure(clocks, protocol)
        quick = {name: found.quick_ms().tolist() for name, found in times.items()}
        return RaceTimes(
            rounds_ms={label: quick[name] for name, labels in equal.items() for label in labels if name in quick}
        )

    def _opened(
        self, graphs: Sequence[Legalisation], controls: Sequence[Control], budget_ms: float, stack: contextlib.ExitStack
    ) -> tuple[dict[str, Contestant], dict[str, list[str]]]:
        """Engines by name, the controls first, and the labels of what each of them stands for."""
        began = time.monotonic()
        clocks: dict[str, Contestant] = {}
        equal: dict[str, list[str]] = {}
        for control in controls:
            clocks[control.label] = contestant(stack.enter_context(self._control(control)), self.job.inputs)
            equal[control.label] = [control.label]
        for at, graph in enumerate(graphs):
            if at >= NEVER_LEFT_OUT and (time.monotonic() - began) * 1e3 > budget_ms:
                self.progress(f"placement: no time to build {len(graphs) - at} of {len(graphs)} graphs")
                break
            path = self._graph(graph)
            equal.setdefault(path.name, []).append(self._label(graph))
            if path.name in clocks:
                continue
            try:
                clock = contestant(stack.enter_context(self._engine(path)), self.job.inputs)
                clock()
            except SbsError as error:
                if graph == graphs[0]:
                    raise
                self.progress(f"placement: {self.name(graph)} does not run here: {error}")
            else:
                clocks[path.name] = clock
        return clocks, equal

    def _profiled(self, graph: Legalisation | None) -> StepTimes:
        job = self.job
        self.progress(f"placement: profile of {'the float network' if graph is None else self.name(graph)}")
        if graph is None:
            (control,) = [one for one in wanted_controls(job.request.backend, ("slim",)) if one.network == "slim"]
            source = write_graph(control, job.run)
            opened: AbstractContextManager[Engine] = self._control(control)
        else:
            source = self._graph(graph)
            opened = self._engine(source)
        with opened as engine:
            clock = contestant(engine, job.inputs)
            whole_ms = min(clock().undisturbed_ms for _ in range(LAYER_RUNS))
            try:
                nodes = engine.node_times(job.inputs, LAYER_RUNS)
            except SbsError as error:
                self.progress(f"placement: no times of layers ({error}); whole graphs alone decide")
                return StepTimes(ms={})
        steps = step_times(nodes, load_onnx(source), job.layers)
        scale = whole_ms / max(sum(step["ms"] for step in steps.values()), 1e-9)
        found: dict[str, float] = {}
        for name, step in steps.items():
            layer = name.removeprefix(BEHIND)
            found[layer] = found.get(layer, 0.0) + scale * step["ms"]
        return StepTimes(ms=found)

    def _answers(self, graph: Legalisation) -> Answers:
        return self._once(self.trials.answers, self._label(graph), lambda: self._answered(graph))

    def _answered(self, graph: Legalisation) -> Answers:
        golden, batch = self._golden, self.job.batch
        whole = -(-golden.samples // batch) * batch  # an engine may take this batch alone
        self.progress(f"placement: answers of {self.name(graph)} on {golden.samples} golden samples")
        with self._engine(self._graph(graph)) as engine:
            outputs = outputs_in_parts(engine, repeated(golden.inputs, engine.inputs, whole), batch)
        return answers_of({name: outputs[name][: len(one)] for name, one in golden.outputs.items()}, golden)

    def _graph(self, graph: Legalisation) -> Path:
        """The graph's file, named by its content."""
        link = self.folder / f"{self._label(graph)}.name"
        if not link.is_file():
            model, _ = legalised(self.job.run, self.job.request.backend, graph)
            content = model.SerializeToString(deterministic=True)
            path = self.folder / f"{hashlib.sha256(content).hexdigest()[:16]}.onnx"
            path.write_bytes(content)
            link.write_text(path.name)
        return self.folder / link.read_text()

    def _engine(self, graph: Path) -> AbstractContextManager[Engine]:
        return opened_graph(graph, self.job.request, self.job.threads)

    @contextlib.contextmanager
    def _control(self, control: Control) -> Iterator[Engine]:
        request = self.job.request
        details = {
            "profile": asdict(request.profile),
            "axes": request.axes_json(),
            "settings": request.settings.as_json(),
        }
        with (
            control_engine(control, self.job.run, details, 0) as path,
            open_engine(path, control.backend, control.precision, self.job.threads, built=False) as engine,
        ):
            yield engine

    def _once(self, found: dict[str, Kept], key: str, make: Callable[[], Kept]) -> Kept:
        """A measurement from the file, or made now and written to it."""
        if key not in found:
            began = time.monotonic()
            made = make()
            found[key] = made.model_copy(update={"seconds": time.monotonic() - began})
            self.path.parent.mkdir(parents=True, exist_ok=True)
            rundir.write_json(self.path, self.trials.model_dump())
        self.counted[f"{type(found[key]).__name__} {key}"] = found[key].seconds
        return found[key]

    @property
    def _spent_s(self) -> float:
        return sum(self.counted.values())


def form_of(graph: Legalisation, base: Legalisation) -> str:
    """Options of a graph that differ from the plan's, without its float layers; empty for none."""
    was = asdict(base)
    changed = {name: value for name, value in asdict(graph).items() if value != was[name] and name != "float_layers"}
    return ", ".join(f"{name} {value}" for name, value in changed.items())
