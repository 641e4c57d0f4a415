"""Sweeps on a Ray cluster have the results of those in processes."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from traces.worker_pool import worker_pool

ROOT = Path(__file__).resolve().parents[2]
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs strait-rl[ray]")


def printed(*words: str) -> str:
    """What a command of ours writes to standard output."""
    ended = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, timeout=300.0)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stdout


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
