"""Worlds of several devices as one batch: each part is as it is alone."""

from __future__ import annotations

import numpy as np
import pytest

from envs.mixed import MixedVecEnv, convert_actions
from envs.sb3 import SB3VecEnv
from envs.scheduling.observation import N_CANDIDATE, N_SUMMARY
from envs.simulation.config import EnvConfig
from traces.errors import InputError

SETTINGS = [
    EnvConfig("synthetic:0", models=("model0", "model1"), streams=2, duration_ms=(60.0, 90.0)),
    EnvConfig("synthetic:1", streams=4, duration_ms=(60.0, 90.0)),
]


def parts() -> list[SB3VecEnv]:
    return [SB3VecEnv(3, config=SETTINGS[0]), SB3VecEnv(2, config=SETTINGS[1])]


def test_a_mixed_batch_is_its_parts_side_by_side() -> None:
    mixed, alone = MixedVecEnv(parts()), parts()
    mixed.seed(5)
    obs = mixed.reset()
    alone[0].seed(5)
    alone[1].seed(8)  # the batch numbers its worlds on
    for part in alone:
        part.reset()
    rng = np.random.default_rng(0)
    n_actions = mixed.masks.shape[1]
    ended = 0
    for _ in range(300):
        for part, rows in zip(alone, mixed.rows, strict=True):
            own = part.masks.shape[1]
            candidates = (own - 1) * N_CANDIDATE
            np.testing.assert_array_equal(obs[rows, :candidates], part.obs[:, :candidates])
            assert not obs[rows, candidates:-N_SUMMARY].any(), "what is added is not valid"
            np.testing.assert_array_equal(obs[rows, -N_SUMMARY:], part.obs[:, -N_SUMMARY:])
            np.testing.assert_array_equal(mixed.masks[rows, : own - 1], part.masks[:, :-1])
            assert not mixed.masks[rows, own - 1 : -1].any() and mixed.masks[rows, -1].all()
        actions = np.array([rng.choice(np.flatnonzero(mask)) for mask in mixed.masks])
        obs, rewards, dones, infos = mixed.step(actions)
        for part, rows in zip(alone, mixed.rows, strict=True):
            _, reward, done, _ = part.step(convert_actions(actions[rows], n_actions, part.masks.shape[1]))
            np.testing.assert_array_equal(rewards[rows], reward)
            np.testing.assert_array_equal(dones[rows], done)
            np.testing.assert_array_equal(mixed.elapsed[rows], part.elapsed)
        for i in np.flatnonzero(dones):
            assert infos[i]["terminal_observation"].shape == mixed.observation_space.shape
        ended += int(dones.sum())
    assert ended > 0


def test_a_mixture_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="must be at least 1"):
        MixedVecEnv([])
