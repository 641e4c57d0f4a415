"""Compiled code against the same code as plain Python: the same bytes."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from agents.policies.registry import make_policy
from envs.profiles.profile import synthetic_profile
from envs.simulation.config import EnvConfig, RandomiseConfig
from envs.simulation.worlds import Worlds, world_seed

ROOT = Path(__file__).resolve().parents[2]
CONFIG = EnvConfig(
    models=("model0", "model1"),
    streams=3,
    load=(1.2, 1.2),
    duration_ms=(60.0, 60.0),
    end_ms=50.0,
    randomise=RandomiseConfig(solo_error=0.1, slowdown_error=0.2, min_streams=2),
)
# Plain Python is some thousand times slower: capacity, which needs thousands of batches, is given in advance.
CAPACITY_RPS = 400.0


def play(policy_name: str, decisions: int = 60) -> str:
    """Digest of all that two worlds show and hold over some decisions; plain Python if this process does not compile."""
    import envs.simulation.worlds

    envs.simulation.worlds.measure_capacity = lambda *_: CAPACITY_RPS
    worlds = Worlds(CONFIG, 2, profile=synthetic_profile().select(CONFIG.models))
    worlds.reset(np.array([world_seed(i) for i in range(2)], np.uint64))
    policy = make_policy(policy_name, 2)
    actions, wakes, skip = np.zeros(2, np.int64), np.zeros(2), np.zeros(2, bool)
    digest = hashlib.sha256()
    for _ in range(decisions):
        policy.decide_all(worlds.sim.state, worlds.sim.tables, skip, actions, wakes)
        worlds.step(actions)
        for part in (
            worlds.obs,
            worlds.masks,
            worlds.out.reward,
            worlds.out.dt,
            worlds.out.done,
            worlds.sim.state.weight,
        ):
            digest.update(np.ascontiguousarray(part).tobytes())
    digest.update(worlds.sim.state.count.tobytes())
    return digest.hexdigest()


@pytest.mark.slow
def test_compiled_and_plain_python_give_the_same_bytes() -> None:
    code = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests" / "helpers")!r}, {str(ROOT / "tests" / "envs")!r}]
from test_env_jit import play
print(play("strait"), play("fifo"))
"""
    found = {
        disable: subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=os.environ | {"NUMBA_DISABLE_JIT": disable},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for disable in ("0", "1")
    }
    assert len(found["0"]) == 2
    assert found["0"] == found["1"]


def test_code_of_a_callee_is_loaded_for_a_new_caller(tmp_path: Path) -> None:
    """What has no machine code of its own is kept in the cache all the same, and callers take it from there."""
    (tmp_path / "callers.py").write_text(
        """
import sys
from envs.scheduling.jit import inlined, njit

@njit
def half(x):
    return x / 2.0

@inlined
def quarter(x):
    return half(half(x))

@njit
def first(x):
    return quarter(x) + half(x)

@njit
def second(x):
    return quarter(x) - half(x)

called = first if sys.argv[1] == "first" else second
value = called(8.0)
print(value, sum(quarter.get_overload.__self__.stats.cache_hits.values()))
"""
    )
    env = os.environ | {"STRAIT_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT), "NUMBA_DISABLE_JIT": "0"}
    found = [
        subprocess.run(
            [sys.executable, str(tmp_path / "callers.py"), caller], env=env, capture_output=True, text=True, check=True
        ).stdout.split()
        for caller in ("first", "second", "second")
    ]
    # Once it is compiled, once loaded from the cache, and at last not needed, as its caller is loaded with its copy of it.
    assert found == [["6.0", "0"], ["-2.0", "1"], ["-2.0", "0"]]
