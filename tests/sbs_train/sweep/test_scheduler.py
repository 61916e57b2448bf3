"""Local processes: what each is given, how many at a time, and that none outlives the sweep."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sbs_train.sweep import task as tasks_module
from sbs_train.sweep.progress import SweepProgress, where
from sbs_train.sweep.scheduler import LocalScheduler
from tests.sbs_train.sweep.tasks import script

NOTE = "open('started', 'a').write(str(os.getpid()) + '\\n'); "
SLEEP = NOTE + "time.sleep(60)"


def run_all(scheduler, tasks):
    return [event for event in scheduler.run(tasks) if event is not None]


def wait_for(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def pids_of(directory):
    path = directory / "started"
    return [int(line) for line in path.read_text().split()] if path.is_file() else []


def test_a_process_gets_its_order_its_threads_and_its_gpu(tmp_path):
    code = "print(order['config']['target'], os.environ['OMP_NUM_THREADS'], os.environ['CUDA_VISIBLE_DEVICES'])"
    tasks = [script(tmp_path, name, code, threads=3) for name in ("20x", "40x", "60x")]
    events = run_all(LocalScheduler(2, ["GPU-a", "GPU-b"]), tasks)
    assert [event.failure for event in events] == [None] * 6
    assert [sum(event.ended == ended for event in events) for ended in (False, True)] == [3, 3]
    said = [task.log.read_text().split() for task in tasks]
    assert [words[:2] for words in said] == [["20x", "3"], ["40x", "3"], ["60x", "3"]]
    assert [words[2] for words in said[:2]] == ["GPU-a", "GPU-b"]


@pytest.mark.parametrize("jobs", [1, 2])
def test_no_more_than_so_many_at_a_time(tmp_path, jobs):
    tasks = [script(tmp_path, f"{n}x", "time.sleep(0.3)") for n in range(1, 5)]
    running, most = 0, 0
    for event in run_all(LocalScheduler(jobs), tasks):
        running += -1 if event.ended else 1
        most = max(most, running)
    assert most == jobs and running == 0


@pytest.mark.parametrize(
    ("code", "words", "status"),
    [
        ("sys.stderr.write('sbs-train: error: the loss is nan\\n'); sys.exit(2)", "the loss is nan", 2),
        ("raise RuntimeError('no such kernel')", "exit code 1: RuntimeError: no such kernel; see", 1),
        ("os.kill(os.getpid(), 9)", "killed, probably for want of memory", -9),
        ("os.kill(os.getpid(), 15)", "ended by signal 15", -15),
        ("sys.exit(3)", "exit code 3: it said nothing", 3),
    ],
)
def test_why_a_run_failed(tmp_path, code, words, status):
    _, end = run_all(LocalScheduler(1), [script(tmp_path, "20x", code)])
    assert words in end.failure.words and end.failure.code == status and "\n" not in end.failure.words


def test_a_process_that_never_reads_its_order(tmp_path):
    task = script(tmp_path, "20x", "", arguments=("-c", "pass"), config={"x": "y" * (1 << 20)})
    assert run_all(LocalScheduler(1), [task])[-1].failure is None


def test_leaving_the_loop_ends_the_processes(tmp_path):
    tasks = [script(tmp_path, name, SLEEP) for name in ("20x", "40x", "60x")]
    with pytest.raises(KeyboardInterrupt), contextlib.closing(LocalScheduler(2).run(tasks)) as events:
        for _ in events:
            if len(pids := pids_of(tmp_path)) == 2:
                raise KeyboardInterrupt
    assert not any(alive(pid) for pid in pids)
    assert "KeyboardInterrupt" in tasks[0].log.read_text(), "it could say so before it ended"
    assert not tasks[2].out.exists()


def test_a_process_that_does_not_want_to_end_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks_module, "GRACE_S", 0.2)
    code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); " + SLEEP
    with contextlib.closing(LocalScheduler(1).run([script(tmp_path, "20x", code)])) as events:
        for _ in events:
            if pids := pids_of(tmp_path):
                break
    assert not alive(pids[0])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_no_run_outlives_a_sweep_that_is_killed(tmp_path, number):
    child = (
        "import sys, threading, os, time\nsys.stdin.readline()\n"
        "from sbs_train.sweep.worker import _end_with_the_sweep as end\n"
        "threading.Thread(target=end, args=(0,), daemon=True).start()\n" + NOTE + "time.sleep(60)"
    )
    parent = (
        "from pathlib import Path\nfrom sbs_train.sweep.scheduler import LocalScheduler\n"
        "from tests.sbs_train.sweep.tasks import script\n"
        f"task = script(Path({str(tmp_path)!r}), '20x', '', arguments=('-c', {child!r}))\n"
        "list(LocalScheduler(1).run([task]))"
    )
    root = Path(__file__).parents[3]
    sweep = subprocess.Popen([sys.executable, "-c", parent], cwd=root, env={**os.environ, "PYTHONPATH": str(root)})
    wait_for(lambda: pids_of(tmp_path))
    sweep.send_signal(number)
    sweep.wait()
    wait_for(lambda: not alive(pids_of(tmp_path)[0]))


def test_progress_reads_the_last_epoch_that_a_log_names(tmp_path):
    task = script(tmp_path, "20x", "")
    assert where(task) == (None, 0)
    task.out.mkdir()
    task.log.write_text(
        "pretrain: up to date\nsearch 2/4  loss 2.2\nsearch: 60.2x, test top-1 35 % before fine-tuning\n"
    )
    assert where(task) == ("search", 2)
    task.log.write_text("search 4/4  loss 2.2\nfinetune 1/2  loss 2\nwarning: [/nothing]\n")
    assert where(task) == ("finetune", 1)


def test_progress_on_a_terminal_and_without_one(tmp_path, capsys, monkeypatch):
    code = "print('search 3/4  loss 1', flush=True); time.sleep(0.5)"
    for terminal in (False, True):
        if terminal:
            monkeypatch.setenv("FORCE_COLOR", "1")
            monkeypatch.setenv("COLUMNS", "100")
        tasks = [script(tmp_path, "20x", code), script(tmp_path, "40x", "sys.exit('sbs-train: error: out of luck')")]
        with SweepProgress(tasks) as progress:
            for event in LocalScheduler(1).run(tasks):
                progress.refresh() if event is None else progress.show(event)
        out, err = capsys.readouterr()
        assert out == "" and "40x: failed: out of luck" in err
        assert ("search 3/4" in err) == terminal and ("20x: starts" in err) != terminal
