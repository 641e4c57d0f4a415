"""The environment in Gymnasium's own tools: vector environments, autoreset modes, wrappers, copies and pickles."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.wrappers import vector as wrappers

import envs  # noqa: F401
from envs.dual_priority import DualPriorityEnv
from envs.simulation.config import EnvConfig, RandomiseConfig
from envs.vector import DualPriorityVectorEnv
from traces.errors import InputError
from traces.workload import Workload

TINY = "Strait/DualPriority-Tiny-v0"
SHORT = {"duration_ms": (30.0, 60.0), "end_ms": 100.0}
RANDOM = EnvConfig(**SHORT, randomise=RandomiseConfig(solo_error=0.1, slowdown_error=0.2, min_streams=2))
N = 3


def choose(rng: np.random.Generator, masks: np.ndarray) -> np.ndarray:
    return np.array([rng.choice(np.flatnonzero(row)) for row in masks])


def history(env: VectorEnv, steps: int = 200) -> list[np.ndarray]:
    """All that random valid actions show of a vector environment."""
    rng = np.random.default_rng(1)
    obs, infos = env.reset(seed=[5, 6, 7])
    got = [obs, infos["action_mask"], infos["seed"]]
    disabled = env.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    ended = 0
    for _ in range(steps):
        obs, reward, done, truncated, infos = env.step(choose(rng, infos["action_mask"]))
        got += [obs, reward, done, truncated, infos["action_mask"], infos["time_ms"], infos["outcomes"], infos["seed"]]
        ended += done.sum()
        if "final_obs" in infos:
            got += [infos["final_obs"][i] for i in np.flatnonzero(infos["_final_obs"])]
            got += [infos["final_info"]["outcomes"][i] for i in np.flatnonzero(infos["_final_info"])]
        if disabled and done.any():
            obs, infos = env.reset(options={"reset_mask": done})
            got += [obs[done], infos["action_mask"][done]]
            infos["action_mask"] = np.array(
                env.call("action_masks") if hasattr(env, "call") else env.unwrapped.action_masks()
            )
    assert ended > 3
    return [np.array(part) for part in got]


def same(one: list[np.ndarray], two: list[np.ndarray]) -> bool:
    return len(one) == len(two) and all(np.array_equal(a, b) for a, b in zip(one, two))


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_gymnasiums_vector_environments_and_ours_are_the_same_in_every_autoreset_mode(
    mode: AutoresetMode, kind: str
) -> None:
    ours = gym.make_vec(TINY, num_envs=N, autoreset_mode=mode, **SHORT)
    theirs = gym.make_vec(TINY, num_envs=N, vectorization_mode=kind, vector_kwargs={"autoreset_mode": mode}, **SHORT)
    assert isinstance(ours, DualPriorityVectorEnv) and ours.metadata["autoreset_mode"] is mode
    assert same(history(ours), history(theirs))
    theirs.close()


@pytest.mark.parametrize("options", [{"load": 0.5}, {"workload": None}, {"profile": "synthetic:1"}])
def test_options_without_a_seed_go_on_from_the_last_episodes(options: dict[str, Any]) -> None:
    settings = SHORT | {"profile": "synthetic:0"}
    ours = gym.make_vec(TINY, num_envs=N, **settings)
    theirs = gym.make_vec(TINY, num_envs=N, vectorization_mode="sync", **settings)
    for env in (ours, theirs):
        env.reset(seed=3)
    for _ in range(2):
        (mine, infos), (other, _) = (env.reset(options=options) for env in (ours, theirs))
        assert np.array_equal(mine, other) and len(set(infos["seed"])) == N


def test_a_reset_that_would_leave_worlds_unbegun_is_refused() -> None:
    some = np.array([True, False, False])
    with pytest.raises(gym.error.ResetNeeded, match="leave reset_mask out"):
        DualPriorityVectorEnv(3, EnvConfig(**SHORT)).reset(seed=0, options={"reset_mask": some})
    env = DualPriorityVectorEnv(3, EnvConfig(**SHORT))
    infos = env.reset(seed=[1, None, None], options={"reset_mask": ~some | True})[1]
    assert len(set(infos["seed"])) == 3
    for options, words in (
        ({"reset_mask": some, "load": 0.5}, "'load', which holds for all worlds"),
        ({"reset_mask": some[:2]}, r"bool\[2\]; expected bool\[3\]"),
        ({"reset_mask": [1, 0, 0]}, r"int64\[3\]; expected bool\[3\]"),
    ):
        with pytest.raises(InputError, match=words):
            env.reset(options=options)
    env.step(np.full(3, env.single_action_space.n - 1))


def test_an_ended_world_must_be_reset_where_nothing_does_it() -> None:
    env = DualPriorityVectorEnv(2, EnvConfig(**SHORT), autoreset_mode=AutoresetMode.DISABLED)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros(2, np.int64))
    env.reset(seed=0)
    done = np.zeros(2, bool)
    while not done.any():
        done = env.step(np.full(2, env.single_action_space.n - 1))[2]
    with pytest.raises(gym.error.ResetNeeded, match=str(np.flatnonzero(done).tolist()).replace("[", r"\[")):
        env.step(np.zeros(2, np.int64))


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_views_stay_until_the_step_after_next_in_every_mode(mode: AutoresetMode) -> None:
    env = DualPriorityVectorEnv(N, EnvConfig(**SHORT), copy=False, autoreset_mode=mode)
    rng = np.random.default_rng(0)
    obs, _ = env.reset(seed=0)
    for _ in range(150):
        kept = obs.copy()
        following, _, done, _, _ = env.step(choose(rng, env.action_masks()))
        assert np.array_equal(obs, kept)
        obs = following
        if mode is AutoresetMode.DISABLED and done.any():
            obs = env.reset(options={"reset_mask": done})[0]


WRAPPERS: dict[str, Callable[[VectorEnv], Any]] = {
    "normalised observations": wrappers.NormalizeObservation,
    "normalised rewards": wrappers.NormalizeReward,
    "statistics": wrappers.RecordEpisodeStatistics,
    "clipped rewards": lambda env: wrappers.ClipReward(env, -1, 1),
    "flat observations": wrappers.FlattenObservation,
    "observations of another type": lambda env: wrappers.DtypeObservation(env, np.float64),
    "infos as a list": wrappers.DictInfoToList,
    "several": lambda env: wrappers.NormalizeReward(
        wrappers.NormalizeObservation(wrappers.RecordEpisodeStatistics(env))
    ),
}


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("kind", ["vector_entry_point", "sync"])
def test_gymnasiums_vector_wrappers_work(name: str, kind: str) -> None:
    env = WRAPPERS[name](gym.make_vec(TINY, num_envs=2, vectorization_mode=kind, **SHORT))
    env.reset(seed=0)
    episodes = 0
    for _ in range(300):
        _, _, done, _, infos = env.step(np.full(2, env.single_action_space.n - 1))
        episodes += int(np.asarray(done).sum())
        if name == "statistics" and done.any():
            assert (infos["episode"]["l"][done] > 1).all() and infos["_episode"].tolist() == done.tolist()
    assert episodes > 3
    env.close()


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_statistics_are_recorded_in_the_other_modes(mode: AutoresetMode) -> None:
    env = wrappers.RecordEpisodeStatistics(gym.make_vec(TINY, num_envs=N, autoreset_mode=mode, **SHORT))
    plain = gym.make_vec(TINY, num_envs=N, autoreset_mode=mode, **SHORT)
    assert same(history(env, 100), history(plain, 100)) and len(env.return_queue) > 3


@pytest.mark.parametrize("config", [EnvConfig(**SHORT), RANDOM], ids=["plain", "randomised"])
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))], ids=["copy", "pickle"]
)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_copy_goes_on_as_the_original_would_and_apart_from_it(
    config: EnvConfig, duplicate: Callable[[Any], Any], threads: int
) -> None:
    def go_on(env: DualPriorityVectorEnv, steps: int, seed: int) -> list[np.ndarray]:
        rng = np.random.default_rng(seed)
        return [part for _ in range(steps) for part in env.step(choose(rng, env.action_masks()))[:3]]

    env = DualPriorityVectorEnv(N, config, threads=threads)
    fresh = duplicate(env)
    fresh.reset(seed=0), env.reset(seed=0)
    assert same(go_on(fresh, 37, 0), go_on(env, 37, 0))
    assert (env.worlds.sim.state.stream["busy"] == 1).any(), "nothing in flight: not copied mid-episode"
    twin, other = duplicate(env), duplicate(env)
    go_on(other, 50, 2)
    assert same(go_on(twin, 150, 1), go_on(env, 150, 1))
    env.close()
    again = duplicate(env)
    again.step(np.full(N, env.single_action_space.n - 1))


@pytest.mark.parametrize("wrap", [lambda env: env, gym.wrappers.RecordEpisodeStatistics, gym.wrappers.Autoreset])
def test_single_environments_are_copied_with_their_wrappers(wrap: Callable[[gym.Env], gym.Env]) -> None:
    env = wrap(gym.make(TINY, render_mode="rgb_array"))
    n = 30
    recorded = Workload(np.arange(n) * 1.0, np.zeros(n), np.arange(n) % 2, np.full(n, 9.0), ("model1",))
    env.reset(seed=3, options={"workload": recorded})
    action = int(env.action_space.n) - 1
    env.step(action)
    for twin in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):
        steps = [(twin.step(action), copy.deepcopy(env).step(action)) for _ in range(1)]
        assert all(np.array_equal(a[0], b[0]) and a[1:3] == b[1:3] for a, b in steps)
        assert np.array_equal(twin.reset()[0], copy.deepcopy(env).reset()[0])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"streams": True}, "streams: True; expected a whole number"),
        ({"streams": 2.5}, "streams: 2.5; expected a whole number"),
        ({"streams": "4"}, "streams: '4'; expected a whole number"),
        ({"streams": 1000}, "streams: 1000; must be at most 32"),
        ({"noise": "false"}, "noise: 'false'; expected true or false"),
        ({"load": True}, "load: True; expected a number or a pair"),
        ({"load": (0.5, "1")}, "load: .*; expected a number or a pair"),
        ({"burst": None}, "burst: None; expected"),
        ({"high_weight": (0.0, 1.0)}, "high_weight: .*; must be low and high from 0.001"),
        ({"drop": float("nan")}, "drop: nan; expected a number"),
        ({"end_ms": float("inf")}, "end_ms: inf; must be at least 0"),
        ({"models": "model0"}, "models: 'model0'; expected a list"),
        ({"model_share": {"model0": True}}, "model_share: .*; expected a mapping"),
        ({"randomise": {"solo": 1.0}}, "randomise: unknown field 'solo'"),
        ({"randomise": {"solo_error": -1.0}}, "randomise.solo_error: -1.0; must be at least 0"),
        ({"randomise": 3}, "randomise: 3; expected a mapping"),
    ],
)
def test_a_setting_of_another_type_or_out_of_range_is_one_line(settings: dict[str, Any], words: str) -> None:
    for make in (DualPriorityEnv, DualPriorityVectorEnv):
        with pytest.raises(InputError, match=words) as error:
            make(**settings)
        assert "\n" not in str(error.value)
