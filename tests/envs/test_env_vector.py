"""The batch against the single environment: bit for bit, views, autoreset, threads, checkpoints."""

from __future__ import annotations

import io

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from envs.dual_priority import DualPriorityEnv
from envs.sb3 import SB3VecEnv
from envs.scheduling.observation import DURATION, N_CANDIDATE, N_SUMMARY, SLACK, SLACK_P90
from envs.simulation.config import EnvConfig, RandomiseConfig
from envs.simulation.worlds import Worlds
from envs.vector import DualPriorityVectorEnv
from traces.errors import InputError

CONFIG = EnvConfig(duration_ms=(80.0, 160.0), end_ms=200.0)
RANDOM = EnvConfig(
    duration_ms=(80.0, 160.0),
    end_ms=200.0,
    randomise=RandomiseConfig(solo_error=0.1, device_error=0.1, slowdown_error=0.2, min_streams=2),
)
N = 5


def choose(rng: np.random.Generator, masks: np.ndarray) -> np.ndarray:
    """A random valid action for each row of masks."""
    return np.array([rng.choice(np.flatnonzero(row)) for row in masks])


def history(env: DualPriorityVectorEnv, steps: int, seed: int = 0) -> list[np.ndarray]:
    """All that ``steps`` random decisions show, from the present masks on."""
    rng = np.random.default_rng(seed)
    got = []
    for _ in range(steps):
        obs, reward, done, _, info = env.step(choose(rng, env.action_masks()))
        got += [obs, reward, done, info["action_mask"], info["dt_ms"], info["time_ms"]]
    return [a.copy() for a in got]


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return len(a) == len(b) and all(x.tobytes() == y.tobytes() for x, y in zip(a, b))


@pytest.mark.parametrize("config", [CONFIG, RANDOM], ids=["plain", "randomised"])
def test_batched_is_single_bit_for_bit(config: EnvConfig) -> None:
    many = DualPriorityVectorEnv(N, config, autoreset_mode=AutoresetMode.SAME_STEP)
    alone = [DualPriorityEnv(config) for _ in range(N)]
    obs, info = many.reset(seed=7)
    rows = [env.reset(seed=7 + i) for i, env in enumerate(alone)]
    rng = np.random.default_rng(1)
    ended = 0
    for _ in range(400):
        for i, (row, row_info) in enumerate(rows):
            assert row.tobytes() == obs[i].tobytes()
            assert np.array_equal(row_info["action_mask"], info["action_mask"][i])
        actions = choose(rng, info["action_mask"])
        obs, reward, done, _, info = many.step(actions)
        rows = []
        for i, env in enumerate(alone):
            row, row_reward, row_done, _, row_info = env.step(int(actions[i]))
            assert (row_reward, row_done) == (reward[i], done[i])
            if row_done:
                ended += 1
                assert row.tobytes() == info["final_obs"][i].tobytes()
                assert np.array_equal(row_info["outcomes"], info["final_info"]["outcomes"][i])
                # The batch went on by itself; a reset without a seed goes on to the same episode.
                row, row_info = env.reset()
            else:
                assert row_info["dt_ms"] == info["dt_ms"][i]
            rows.append((row, row_info))
    assert ended > 3


def test_number_of_worlds_does_not_matter() -> None:
    few, many = DualPriorityVectorEnv(2, CONFIG), DualPriorityVectorEnv(6, CONFIG)
    few.reset(seed=0), many.reset(seed=0)
    for _ in range(100):
        actions = np.argmax(many.action_masks(), axis=1)
        a, b = few.step(actions[:2]), many.step(actions)
        assert a[0].tobytes() == b[0][:2].tobytes() and np.array_equal(a[1], b[1][:2])


@pytest.mark.parametrize("config", [CONFIG, RANDOM], ids=["plain", "randomised"])
def test_two_threads_are_one_thread_bit_for_bit(config: EnvConfig) -> None:
    runs = []
    for threads in (1, 2):
        env = DualPriorityVectorEnv(N, config, threads=threads)
        env.reset(seed=0)
        runs.append(history(env, 300))
        env.close()
    assert same(*runs)


def test_autoreset_in_the_same_step_shows_the_end_and_goes_on() -> None:
    env = DualPriorityVectorEnv(3, CONFIG, autoreset_mode="SameStep")
    _, info = env.reset(seed=0)
    rng = np.random.default_rng(0)
    returns, steps, episodes = np.zeros(3), np.zeros(3, int), 0
    for _ in range(500):
        offered = env.worlds.sim.world.episode["n"].copy()
        _, reward, done, truncated, info = env.step(choose(rng, info["action_mask"]))
        returns += reward
        steps += 1
        assert not truncated.any()
        assert ("final_info" in info) == done.any()
        for i in np.flatnonzero(done):
            episodes += 1
            assert info["_final_obs"][i] and info["_final_info"][i]
            assert info["final_info"]["episode"]["r"][i] == pytest.approx(returns[i])
            assert info["final_info"]["episode"]["l"][i] == steps[i]
            assert info["final_info"]["outcomes"][i].sum() == offered[i]
            assert info["time_ms"][i] <= info["final_info"]["episode"]["t"][i]
            returns[i], steps[i] = 0.0, 0
    assert episodes > 3


def test_reset_of_some_worlds_leaves_the_others() -> None:
    env = DualPriorityVectorEnv(3, CONFIG)
    env.reset(seed=0)
    history(env, 20)
    before, seeds = env.worlds.obs.copy(), env.worlds.seeds.copy()
    obs, _ = env.reset(seed=[9, None, None], options={"reset_mask": np.array([True, False, False])})
    assert obs[1:].tobytes() == before[1:].tobytes()
    assert env.worlds.seeds[0] != seeds[0] and np.array_equal(env.worlds.seeds[1:], seeds[1:])


def test_copies_are_the_callers_own_views_are_not() -> None:
    env = DualPriorityVectorEnv(2, CONFIG)
    obs, _ = env.reset(seed=0)
    assert not np.shares_memory(obs, env.worlds.obs)
    view = DualPriorityVectorEnv(2, CONFIG, copy=False)
    obs, info = view.reset(seed=0)
    assert np.shares_memory(obs, view.worlds.obs) and np.shares_memory(info["action_mask"], view.worlds.masks)
    kept = obs.copy()
    view.step(np.full(2, view.single_action_space.n - 1))
    assert np.array_equal(obs, kept), "what a step returned must stay until the step after next"


def test_wrong_number_of_actions_is_refused() -> None:
    env = DualPriorityVectorEnv(3, CONFIG)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="actions have shape"):
        env.step(np.zeros(2, np.int64))


def test_sb3_view_shares_the_arrays_and_gives_masks_as_one_array() -> None:
    vec = SB3VecEnv(4, config=CONFIG)
    vec.seed(3)
    obs = vec.reset()
    worlds = vec.env.worlds
    assert np.shares_memory(obs, worlds.obs)
    masks = vec.env_method("action_masks")
    assert masks.shape == (4, vec.action_space.n) and np.shares_memory(masks, worlds.masks)
    vec.step_async(np.full(4, vec.action_space.n - 1))
    obs, reward, _, _ = vec.step_wait()
    assert np.shares_memory(obs, worlds.obs) and np.shares_memory(reward, worlds.out.reward)


def test_sb3_view_is_the_vector_environment() -> None:
    vec, env = SB3VecEnv(4, config=CONFIG), DualPriorityVectorEnv(4, CONFIG, autoreset_mode="SameStep")
    vec.seed(3)
    rows, ended = vec.reset(), 0
    obs, info = env.reset(seed=3)
    rng = np.random.default_rng(0)
    for _ in range(400):
        assert rows.tobytes() == obs.tobytes() and np.array_equal(vec.masks, info["action_mask"])
        actions = choose(rng, info["action_mask"])
        vec.step_async(actions)
        rows, reward, dones, infos = vec.step_wait()
        obs, other_reward, done, _, info = env.step(actions)
        assert np.array_equal(reward, other_reward.astype(reward.dtype)) and np.array_equal(dones, done)
        assert [bool(i) for i in infos] == done.tolist()
        for i in np.flatnonzero(done):
            ended += 1
            assert infos[i]["terminal_observation"].tobytes() == info["final_obs"][i].tobytes()
            assert infos[i]["episode"]["l"] == info["final_info"]["episode"]["l"][i]
            assert np.array_equal(infos[i]["outcomes"], info["final_info"]["outcomes"][i])
    assert ended > 3


@pytest.mark.parametrize("config", [CONFIG, RANDOM], ids=["plain", "randomised"])
def test_checkpoint_mid_episode_goes_on_bit_for_bit(config: EnvConfig) -> None:
    env = DualPriorityVectorEnv(N, config)
    env.reset(seed=0)
    history(env, 37, seed=1)
    assert (env.worlds.sim.state.stream["busy"] == 1).any(), "nothing in flight: not a mid-episode checkpoint"
    file = io.BytesIO()
    np.savez(file, **env.state_dict())
    expected = history(env, 300, seed=2)
    file.seek(0)
    fresh = DualPriorityVectorEnv(N, config)
    with np.load(file, allow_pickle=False) as arrays:
        fresh.load_state_dict(dict(arrays))
    assert same(history(fresh, 300, seed=2), expected)


def test_single_environment_is_restored_too() -> None:
    env = DualPriorityEnv(CONFIG)
    env.reset(seed=0)
    defer = int(env.action_space.n) - 1
    for _ in range(10):
        env.step(defer)
    state = env.state_dict()
    expected = [env.step(defer)[0].tobytes() for _ in range(20)]
    other = DualPriorityEnv(CONFIG)
    other.load_state_dict(state)
    assert [other.step(defer)[0].tobytes() for _ in range(20)] == expected


def test_checkpoint_of_another_batch_is_refused_and_changes_nothing() -> None:
    env, untouched = DualPriorityVectorEnv(2, CONFIG), DualPriorityVectorEnv(2, CONFIG)
    env.reset(seed=0), untouched.reset(seed=0)
    before = env.state_dict()
    larger = DualPriorityVectorEnv(3, CONFIG)
    other = DualPriorityVectorEnv(2, RANDOM)
    lacking = dict(before)
    del lacking["world.run"]
    for arrays in (larger.state_dict(), other.state_dict(), lacking):
        with pytest.raises(InputError):
            env.load_state_dict(arrays)
    assert same(history(env, 50), history(untouched, 50))


@pytest.mark.parametrize(("n", "threads"), [(0, 1), (1, 0)])
def test_batch_of_nothing_is_refused(n: int, threads: int) -> None:
    with pytest.raises(InputError):
        DualPriorityVectorEnv(n, CONFIG, threads=threads)


def test_fewer_streams_than_the_profile_do_not_change_what_is_foreseen() -> None:
    worlds = Worlds(EnvConfig(randomise=RandomiseConfig(min_streams=1)), 32)
    worlds.reset(np.arange(32, dtype=np.uint64))
    rng, compared = np.random.default_rng(0), 0
    for _ in range(60):
        worlds.step(np.argmax(rng.random(worlds.masks.shape) * worlds.masks, axis=1))
        rows = worlds.obs[:, :-N_SUMMARY].reshape(worlds.n, 2, -1, N_CANDIDATE)
        both = (rows[:, 0, :, 0] == 1) & (rows[:, 1, :, 0] == 1)
        duration = rows[:, :, :, DURATION]
        # What a batch would take does not depend on its priority.
        assert np.array_equal(duration[:, 0][both], duration[:, 1][both])
        compared += both.sum()
    assert compared > 100


def test_fewer_streams_than_the_profile_are_no_batches_in_flight() -> None:
    worlds = Worlds(EnvConfig(randomise=RandomiseConfig(min_streams=1)), 32)
    worlds.reset(np.arange(32, dtype=np.uint64))
    worlds.sim.tables.device["quantile_rate"] = 0.0
    slack, slack_p90 = SLACK, SLACK_P90
    alone = 0
    for _ in range(60):
        state = worlds.sim.state
        # Quantiles that widen nothing with no batch in flight, and much with one or more.
        state.scale[:, 0], state.scale[:, 1:] = 1.0, 50.0
        worlds.step(np.full(worlds.n, worlds.sim.n_actions - 1))
        rows = worlds.obs[:, :-N_SUMMARY].reshape(worlds.n, -1, N_CANDIDATE)
        idle = ~state.stream["busy"].any(axis=1)  # some start all the same: no deferral loses what could be in time
        shown = rows[idle][rows[idle][:, :, 0] == 1]
        assert np.array_equal(shown[:, slack], shown[:, slack_p90])
        alone += len(shown)
    assert alone > 100 and len(np.unique(state.scheduler["n_free"])) > 1
