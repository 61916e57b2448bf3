"""A Ray cluster as the place of a sweep's runs; the only module that imports Ray.

All machines must see the sweep's directory and the data under the same paths, and have sbs installed: the runs are the
same processes as on one machine.
"""

from collections import deque
from collections.abc import Generator, Sequence
from typing import Any

from sbs_train.sweep.scheduler import TICK_S, Event
from sbs_train.sweep.task import GRACE_S, Failure, SweepTask, start, stop


class RayScheduler:
    """Ray tasks: each asks for its threads as CPUs, and for a GPU where the runs use one."""

    def __init__(self, jobs: int | None, *, gpu: bool | None) -> None:
        """Join the cluster that RAY_ADDRESS names, or that runs on this machine; start one here if there is none.

        Args:
            jobs: at the same time; as many as the cluster has room for unless given.
            gpu: whether every run takes a GPU; None if the cluster has any.
        """
        import ray

        self.ray, self.jobs = ray, jobs
        ray.init(ignore_reinit_error=True, log_to_driver=False)
        self.gpu = bool(ray.cluster_resources().get("GPU")) if gpu is None else gpu

    def run(self, tasks: Sequence[SweepTask]) -> Generator[Event | None, None, None]:
        """As `Scheduler.run`; a task that was handed to Ray counts as started."""
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
        # A run that failed is gone on with by --resume, not repeated at once.
        options = {"num_cpus": task.threads or 1, "num_gpus": int(self.gpu), "max_retries": 0}
        return self.ray.remote(**options)(run_task).remote(task)

    def _failure(self, task: SweepTask, reference: Any) -> Failure | None:
        try:
            code = self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            return Failure(words=f"Ray: {' '.join(str(error).split())[:200] or type(error).__name__}")
        return task.failure(code)


def run_task(task: SweepTask) -> int:
    """On a machine of the cluster: run the task to its end and give its exit code."""
    process = start(task, {})
    try:
        return process.wait()
    finally:
        stop([process])
