"""The environment's manners: spaces, info, options, variants, seeds, rendering."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs  # noqa: F401
from envs.dual_priority import DualPriorityEnv
from envs.registration import VARIANTS
from envs.scheduling import observation
from envs.simulation.config import EnvConfig
from envs.vector import DualPriorityVectorEnv
from traces.errors import InputError
from traces.workload import Workload

ROOT = Path(__file__).resolve().parents[2]
TINY = "Strait/DualPriority-Tiny-v2"
INFO = {"action_mask", "dt_ms", "time_ms", "invalid_action", "outcomes", "seed"}


@pytest.fixture
def env() -> DualPriorityEnv:
    return gym.make(TINY).unwrapped


def play(env: gym.Env, seed: int, steps: int = 200) -> bytes:
    """Everything that an episode under random valid actions shows, as bytes."""
    rng = np.random.default_rng(seed)
    obs, info = env.reset(seed=seed)
    digest = hashlib.sha256(obs.tobytes())
    for _ in range(steps):
        action = int(rng.choice(np.flatnonzero(info["action_mask"])))
        obs, reward, done, _, info = env.step(action)
        for part in (obs, np.float64(reward), info["action_mask"], info["outcomes"], np.float64(info["time_ms"])):
            digest.update(part.tobytes())
        if done:
            break
    return digest.digest()


@pytest.mark.parametrize("name", [TINY, "Strait/DualPriority-v2", "Strait/DualPriority-v0"])
def test_gymnasium_finds_no_fault(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*out of date.*")  # v0 is kept on purpose
        # The checker warns about wrapped environments by design, not about ours.
        check_env(gym.make(name, render_mode="rgb_array").unwrapped)


def test_stable_baselines3_finds_no_fault(env: DualPriorityEnv) -> None:
    # Imported here: another test imports this module in a second process, which needs no torch.
    from stable_baselines3.common.env_checker import check_env as check_sb3

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_sb3(env)


@pytest.mark.parametrize("variant", VARIANTS)
def test_variant_is_made_alone_and_batched(variant: str) -> None:
    name = f"Strait/DualPriority{variant}-v2"
    env = gym.make(name)
    obs, info = env.reset(seed=3)
    many = gym.make_vec(name, num_envs=2)
    assert isinstance(many, DualPriorityVectorEnv)
    rows, infos = many.reset(seed=3)
    assert np.array_equal(rows[0], obs)
    assert np.array_equal(infos["action_mask"][0], info["action_mask"])
    assert not np.array_equal(rows[0], rows[1])


def test_spaces_follow_the_profile(env: DualPriorityEnv) -> None:
    profile = env.worlds.profile
    candidates = 2 * len(profile.models) * len(profile.batch_sizes)
    assert env.action_space == gym.spaces.Discrete(candidates + 1)
    assert env.observation_space.shape == (18 * candidates + 20,)
    assert env.observation_space.dtype == np.float32
    assert np.all(env.observation_space.high == 4.0) and np.all(env.observation_space.low == -4.0)


def test_observations_stay_in_bounds_and_rewards_count_violations(env: DualPriorityEnv) -> None:
    rng = np.random.default_rng(0)
    _, info = env.reset(seed=0)
    total, done = 0.0, False
    while not done:
        obs, reward, done, truncated, info = env.step(int(rng.choice(np.flatnonzero(info["action_mask"]))))
        assert env.observation_space.contains(obs)
        assert not truncated
        total += reward
    violations = info["outcomes"][:, 2:].sum(axis=1)
    assert total == pytest.approx(-(5.0 * violations[0] + violations[1]))
    assert info["outcomes"].sum() == env.worlds.sim.world.episode["n"][0]


def test_info_has_the_documented_keys(env: DualPriorityEnv) -> None:
    _, info = env.reset(seed=0)
    assert set(info) == INFO
    assert info["dt_ms"] == 0.0 and not info["invalid_action"]
    before = info["time_ms"]
    _, _, _, _, info = env.step(env.action_space.n - 1)
    assert set(info) == INFO
    assert info["dt_ms"] == pytest.approx(info["time_ms"] - before)
    assert np.array_equal(info["action_mask"], env.action_masks())
    for key in INFO:
        assert key in DualPriorityEnv.__doc__


def test_action_that_is_not_valid_defers_and_is_told(env: DualPriorityEnv) -> None:
    _, info = env.reset(seed=0)
    invalid = int(np.flatnonzero(~info["action_mask"])[0])
    state = env.state_dict()
    obs, reward, _, _, info = env.step(invalid)
    assert info["invalid_action"]
    env.load_state_dict(state)
    deferred, same_reward, _, _, info = env.step(int(env.action_space.n) - 1)
    assert not info["invalid_action"]
    assert np.array_equal(obs, deferred) and reward == same_reward


def test_defer_timer_wakes_after_the_setting() -> None:
    # One request only: after it arrived nothing but the timer or its deadline can end a deferral.
    env = DualPriorityEnv(EnvConfig(profile="synthetic:0", defer=0.25, drop=0.0))
    one = Workload(np.zeros(1), np.zeros(1, np.int32), np.zeros(1, np.int8), np.full(1, 100.0), ("model0",))
    _, info = env.reset(seed=0, options={"workload": one})
    _, _, _, _, info = env.step(int(env.action_space.n) - 1)
    unit_ms = float(env.worlds.sim.tables.device["unit_ms"][0])
    assert info["dt_ms"] == pytest.approx(0.25 * unit_ms)


def test_step_before_reset_is_refused(env: DualPriorityEnv) -> None:
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)


def test_same_seed_gives_the_same_bytes_another_does_not(env: DualPriorityEnv) -> None:
    first = play(env, 5)
    assert play(env, 5) == first
    assert play(gym.make(TINY).unwrapped, 5) == first
    assert play(env, 6) != first


def test_same_seed_gives_the_same_bytes_in_another_process(env: DualPriorityEnv) -> None:
    code = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests" / "helpers")!r}, {str(ROOT / "tests" / "envs")!r}]
import gymnasium as gym
from test_env_api import TINY, play
print(play(gym.make(TINY).unwrapped, 5).hex())
"""
    got = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env=dict(os.environ)
    )
    assert got.stdout.strip() == play(env, 5).hex()


def test_reset_without_seed_goes_on_to_another_episode(env: DualPriorityEnv) -> None:
    seeds = [env.reset(seed=1)[1]["seed"]] + [env.reset()[1]["seed"] for _ in range(3)]
    assert len(set(seeds)) == 4
    assert [env.reset(seed=1)[1]["seed"]] + [env.reset()[1]["seed"] for _ in range(3)] == seeds


def test_option_load_changes_arrivals(env: DualPriorityEnv) -> None:
    count = []
    for load in (0.2, 2.0):
        env.reset(seed=0, options={"load": load})
        count.append(int(env.worlds.sim.world.episode["n"][0]))
    assert count[1] > 4 * count[0]


def test_option_workload_is_replayed_as_recorded(env: DualPriorityEnv) -> None:
    n = 20
    arrival_ms = np.arange(n) * 3.0
    workload = Workload(
        arrival_ms, np.zeros(n, np.int32), (np.arange(n) % 2).astype(np.int8), np.full(n, 50.0), ("model1",), "twenty"
    )
    env.reset(seed=0, options={"workload": workload})
    request = env.worlds.sim.world.request[0, :n]
    assert int(env.worlds.sim.world.episode["n"][0]) == n
    assert np.array_equal(request["arrival"], arrival_ms)
    assert np.array_equal(request["deadline"], arrival_ms + 50.0)
    assert np.all(request["model"] == 1)
    env.reset(seed=0)
    assert int(env.worlds.sim.world.episode["n"][0]) == n
    env.reset(seed=0, options={"workload": None, "load": 0.8})
    assert int(env.worlds.sim.world.episode["n"][0]) != n


def test_a_trace_file_of_ones_own_is_replayed(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("arrival_ms,model,priority,deadline_ms\n0,model1,high,50\n7,model1,low,60\n")
    header = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    (tmp_path / "burst.csv").write_text(header + "100,ChatGPT,1,1,2,API log\n103,ChatGPT,1,1,2,API log\n")
    for name, arrivals in (("own.csv", [0, 7]), ("burst.csv", [0, 3000])):
        for env in (
            DualPriorityEnv(profile="synthetic:0", workload=str(tmp_path / name), load=None, duration_ms=1e6),
            gym.make(TINY, duration_ms=1e6).unwrapped,
        ):
            env.reset(seed=0, options={"workload": str(tmp_path / name)})
            assert env.worlds.sim.world.request[0, :2]["arrival"].tolist() == arrivals


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lod": 1.0}, "no option 'lod'"),
        ({"reset_mask": [True]}, "reset_mask of several worlds"),
        ({"load": 0.0}, "above 0"),
        ({"profile": "nowhere"}, "nowhere"),
        ({"load": -1.0}, "load"),
        ({"load": "much"}, "load"),
        ({"workload": "missing.csv"}, "missing.csv"),
    ],
)
def test_bad_option_is_one_clear_line(env: DualPriorityEnv, options: dict, words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        env.reset(seed=0, options=options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "settings",
    [{"lod": 1}, {"load": (1.0, 0.5)}, {"streams": 0}, {"defer": -1.0}, {"profile": "synthetic:x"}, {"duration_ms": 0}],
)
def test_bad_setting_is_refused(settings: dict) -> None:
    with pytest.raises(InputError):
        DualPriorityEnv(**settings)


def test_picture_is_drawn_and_changes_with_the_state() -> None:
    env = gym.make(TINY, render_mode="rgb_array").unwrapped
    _, info = env.reset(seed=0)
    before = env.render()
    assert before.dtype == np.uint8 and before.ndim == 3 and before.shape[2] == 3
    env.step(int(np.flatnonzero(info["action_mask"])[0]))
    after = env.render()
    assert after.shape == before.shape
    assert not np.array_equal(before, after)


def test_vector_environment_draws_each_world() -> None:
    many = gym.make_vec(TINY, num_envs=2, render_mode="rgb_array")
    many.reset(seed=0)
    pictures = many.render()
    assert len(pictures) == 2 and pictures[0].shape == pictures[1].shape


def test_unknown_render_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="ansi"):
        DualPriorityEnv(render_mode="ansi")


def test_docstring_lists_the_features_that_are_observed() -> None:
    rows = "\n".join(line.strip() for line in str(DualPriorityEnv.__doc__).splitlines())
    assert observation.feature_table() in rows
    for names, module in ((observation.CANDIDATE_FEATURES, observation), (observation.SUMMARY_FEATURES, observation)):
        assert [getattr(module, name.upper()) for name in names] == list(range(len(names)))
