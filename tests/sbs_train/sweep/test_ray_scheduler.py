"""Ray as a scheduler, on a stand-in that answers as Ray's API does: tasks run in threads."""

import sys
import threading
import time
from types import ModuleType

import pytest

from sbs_train import cli
from tests.sbs_train.sweep.tasks import script


class FakeRay(ModuleType):
    """`remote` tasks are threads; CPUs are not counted, GPUs are announced."""

    class exceptions:
        class RayError(Exception):
            pass

    def __init__(self, gpus=0, broken=()):
        super().__init__("ray")
        self.gpus, self.broken = gpus, broken
        self.options, self.cancelled, self.waited = [], [], []

    def init(self, **flags):
        self.flags = flags

    def cluster_resources(self):
        return {"CPU": 8.0, **({"GPU": float(self.gpus)} if self.gpus else {})}

    def remote(self, **options):
        self.options.append(options)

        def decorate(function):
            decorated = ModuleType("function")
            decorated.remote = lambda task: Reference(function, task)
            return decorated

        return decorate

    def wait(self, references, *, num_returns, timeout):
        self.waited.append(len(references))
        end = time.monotonic() + timeout
        while len([r for r in references if r.done]) < num_returns and time.monotonic() < end:
            time.sleep(0.01)
        done = [r for r in references if r.done][:num_returns]
        return done, [r for r in references if r not in done]

    def get(self, reference):
        if reference.task.name in self.broken:
            raise self.exceptions.RayError("The node died\n  unexpectedly.")
        return reference.code

    def cancel(self, reference, *, force):
        assert force
        self.cancelled.append(reference.task.name)


class Reference:
    def __init__(self, function, task):
        self.task, self.code = task, None
        self.thread = threading.Thread(target=lambda: setattr(self, "code", function(task)), daemon=True)
        self.thread.start()

    @property
    def done(self):
        return not self.thread.is_alive()


@pytest.fixture
def ray(monkeypatch):
    def install(**changes):
        fake = FakeRay(**changes)
        monkeypatch.setitem(sys.modules, "ray", fake)
        return fake

    return install


def scheduler(jobs=None, gpu=None):
    from sbs_train.sweep.ray_scheduler import RayScheduler

    return RayScheduler(jobs, gpu=gpu)


def test_every_task_is_a_ray_task_with_its_resources(ray, tmp_path):
    fake = ray(gpus=2)
    tasks = [script(tmp_path, "20x", "print('here')", threads=4), script(tmp_path, "40x", "sys.exit(3)", threads=None)]
    events = [event for event in scheduler().run(tasks) if event is not None]
    assert fake.options == [{"num_cpus": n, "num_gpus": 1, "max_retries": 0} for n in (4, 1)]
    ends = {event.task.name: event.failure for event in events if event.ended}
    assert ends["20x"] is None and "exit code 3" in ends["40x"].words
    assert tasks[0].log.read_text() == "here\n"


@pytest.mark.parametrize(("gpus", "gpu", "asked"), [(0, None, 0), (4, None, 1), (4, False, 0), (0, True, 1)])
def test_gpus(ray, tmp_path, gpus, gpu, asked):
    fake = ray(gpus=gpus)
    list(scheduler(gpu=gpu).run([script(tmp_path, "20x", "")]))
    assert fake.options[0]["num_gpus"] == asked


def test_a_machine_that_is_lost_is_a_failure_in_one_line(ray, tmp_path):
    ray(broken=("20x",))
    events = [event for event in scheduler().run([script(tmp_path, n, "") for n in ("20x", "40x")]) if event]
    ends = {event.task.name: event.failure for event in events if event.ended}
    assert ends["20x"].words == "Ray: The node died unexpectedly." and ends["40x"] is None


def test_so_many_at_a_time_if_so_asked(ray, tmp_path):
    fake = ray()
    list(scheduler(jobs=2).run([script(tmp_path, f"{n}x", "time.sleep(0.2)") for n in range(1, 5)]))
    assert max(fake.waited) == 2


def test_leaving_the_loop_cancels_what_runs(ray, tmp_path):
    fake = ray()
    tasks = [script(tmp_path, "20x", ""), script(tmp_path, "40x", "time.sleep(1)")]
    events = scheduler().run(tasks)
    for event in events:
        if event is not None and event.ended:
            break
    events.close()
    assert fake.cancelled == ["40x"]


def test_without_ray_the_error_names_the_extra(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    out = tmp_path / "sweep"
    assert cli.main(["sweep", "--targets", "20x", "--scheduler", "ray", "--out", str(out)]) == 2
    assert "sbs-vision[ray]" in capsys.readouterr().err and not out.exists()
