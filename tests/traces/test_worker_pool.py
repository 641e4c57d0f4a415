"""Sweeps end at once and leave nothing; on a Ray cluster they have the results of those in processes."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from traces.command import exit_status
from traces.worker_pool import results, worker_pool

ROOT = Path(__file__).resolve().parents[2]
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs strait-rl[ray]")


def printed(*words: str) -> str:
    """What a command of ours writes to standard output."""
    ended = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, timeout=300.0)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stdout


@pytest.mark.parametrize(
    ("number", "group"), [(signal.SIGINT, True), (signal.SIGTERM, False)], ids=["to all processes", "to one"]
)
def test_a_signal_ends_a_sweep_at_once_and_leaves_no_process(number: int, group: bool) -> None:
    flags = ["--accelerators", "16", "--seeds", "60", "--duration_ms", "3000", "--routers", "quote"]
    command = [sys.executable, "-m", "agents.routing", *flags, "--workers", "2"]
    sweep = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    own = psutil.Process(sweep.pid)
    end = time.monotonic() + 120.0
    while len(children := own.children(recursive=True)) < 2 or sum(one.cpu_times().user for one in children) < 1.0:
        assert sweep.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    (os.killpg if group else os.kill)(sweep.pid, number)
    _, said = sweep.communicate(timeout=30.0)
    assert (sweep.returncode, said.splitlines()[-1]) == (130, "stopped")
    assert psutil.wait_procs(children, 10.0)[1] == []


def test_workers_whose_parent_was_killed_end_by_themselves() -> None:
    code = "from traces.worker_pool import worker_pool\nimport time\n" + (
        "with worker_pool(2, None) as pool:\n"
        "    waiting = [pool.submit(time.sleep, 300.0) for _ in range(2)]\n"
        "    print('there', flush=True)\n"
        "    [one.result() for one in waiting]\n"
    )
    sweep = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert sweep.stdout is not None and sweep.stdout.readline() == "there\n"
    children = psutil.Process(sweep.pid).children(recursive=True)
    assert len(children) >= 2
    sweep.kill()
    sweep.wait()
    assert psutil.wait_procs(children, 30.0)[1] == []


def test_a_part_that_fails_ends_the_others() -> None:
    begin = time.monotonic()
    with pytest.raises(ZeroDivisionError), worker_pool(2, None) as pool:
        results([pool.submit(time.sleep, 60.0), pool.submit(divmod, 1, 0)], "part", "", progress=False)
    assert time.monotonic() - begin < 30.0


def test_a_part_that_is_killed_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        with worker_pool(1, None) as pool:
            results([pool.submit(os._exit, 9)], "part", "", progress=False)

    assert exit_status(work) == 1
    assert "a process was killed" in capsys.readouterr().err


@pytest.mark.ray
@pytest.mark.slow
@needs_ray
def test_evaluate_has_the_same_result_on_ray(tmp_path: Path) -> None:
    flags = ["agents.evaluate", "--json", "--policies", "[edf,strait]", "--loads", "[0.9]", "--seeds", "2"]
    here, there = (json.loads(printed(*flags, "--workers", "2", *more)) for more in ([], ["--cluster", "local"]))
    assert here == there


@pytest.mark.ray
@pytest.mark.slow
@needs_ray
def test_routers_have_the_same_result_on_ray() -> None:
    flags = ["agents.routing", "--accelerators", "3", "--duration_ms", "80", "--loads", "[0.9]", "--seeds", "2"]
    assert printed(*flags, "--workers", "2") == printed(*flags, "--cluster", "local")


@pytest.mark.ray
@pytest.mark.slow
@needs_ray
def test_tune_has_the_same_result_on_ray(tmp_path: Path) -> None:
    flags = ["agents.tune", "--policies", "[edf,fifo]", "--budget", "3", "--seeds", "1", "--workers", "2", "--out"]
    printed(*flags, str(tmp_path / "here.json"))
    printed(*flags, str(tmp_path / "there.json"), "--cluster", "local")
    assert json.loads((tmp_path / "here.json").read_text()) == json.loads((tmp_path / "there.json").read_text())


@pytest.mark.ray
@pytest.mark.slow
@needs_ray
def test_what_a_task_raises_comes_without_an_envelope() -> None:
    with worker_pool(1, "local") as pool:
        assert pool.submit(divmod, 7, 2).result() == (3, 1)
        with pytest.raises(ZeroDivisionError) as caught:
            pool.submit(divmod, 7, 0).result()
    assert type(caught.value) is ZeroDivisionError
