"""Run a sweep on a Ray cluster; the only module that imports Ray.

All machines must have sbs installed, and the sweep's directory and the data under the same paths: every run is a
process, as on one machine.
"""

from collections import deque
from collections.abc import Generator, Sequence
from typing import Any

from sbs_train.sweep.scheduler import TICK_S, Event
from sbs_train.sweep.task import GRACE_S, Failure, SweepTask, start, stop


class RayScheduler:
    """Runs tasks on a Ray cluster; each asks for its threads as CPUs, and for a GPU if runs use GPUs."""

    def __init__(self, jobs: int | None, *, gpu: bool | None) -> None:
        """Join the cluster of RAY_ADDRESS or of this machine, or start one here.

        Args:
            jobs: most runs at the same time; None for as many as fit into the cluster.
            gpu: whether every run takes a GPU; None for yes if the cluster has GPUs.
        """
        import ray

        self.ray, self.jobs = ray, jobs
        ray.init(ignore_reinit_error=True, log_to_driver=False)
        self.gpu = bool(ray.cluster_resources().get("GPU")) if gpu is None else gpu

    def run(self, tasks: Sequence[SweepTask]) -> Generator[Event | None, None, None]:
        """Run all tasks, see `Scheduler.run`; a task counts as started once Ray has it."""
        waiting, running = deque(tasks), dict[Any, SweepTask]()
        try:
            while waiting or running:
                while waiting and (self.jobs is None or len(running) < self.jobs):
                    task = waiting.popleft()
                    running[self._submit(task)] = task
                    yield Event(task=task, ended=False)
                for reference in self.ray.wait(list(running), num_returns=1, timeout=TICK_S)[0]:
                    task = running.pop(reference)
                    yield Event(task=task, ended=True, failure=self._failure(task, reference))
                yield None
        finally:
            for reference in running:
                self.ray.cancel(reference, force=True)
            if running:
                self.ray.wait(list(running), num_returns=len(running), timeout=GRACE_S)

    def _submit(self, task: SweepTask) -> Any:
        # Ray must not repeat a failed run: --resume does.
        options = {"num_cpus": task.threads or 1, "num_gpus": int(self.gpu), "max_retries": 0}
        return self.ray.remote(**options)(run_task).remote(task)

    def _failure(self, task: SweepTask, reference: Any) -> Failure | None:
        try:
            code = self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            return Failure(words=f"Ray: {' '.join(str(error).split())[:200] or type(error).__name__}")
        return task.failure(code)


def run_task(task: SweepTask) -> int:
    """Run a task to its end on a machine of the cluster; returns its exit code."""
    process = start(task, {})
    try:
        return process.wait()
    finally:
        stop([process])
