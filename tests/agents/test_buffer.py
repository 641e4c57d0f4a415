from __future__ import annotations

import numpy as np
import torch
from gymnasium import spaces

from agents.training.ppo.buffer import SemiMarkovBuffer, advantages


def by_hand(rewards, values, starts, dt, last, dones, tau, lam):
    """The definition, term by term: a sum over the steps ahead in the same episode."""
    n_steps, n = rewards.shape
    out = np.zeros((n_steps, n))
    for e in range(n):
        for t in range(n_steps):
            weight = 1.0
            for k in range(t, n_steps):
                ends = dones[e] if k == n_steps - 1 else starts[k + 1, e]
                after = last[e] if k == n_steps - 1 else values[k + 1, e]
                gamma = np.exp(-dt[k, e] / tau)
                out[t, e] += weight * (rewards[k, e] + (0.0 if ends else gamma * after) - values[k, e])
                if ends:
                    break
                weight *= gamma * lam
    return out


def case(seed: int = 0, n_steps: int = 12, n: int = 5):
    rng = np.random.default_rng(seed)
    starts = (rng.random((n_steps, n)) < 0.2).astype(np.float32)
    return (
        rng.normal(size=(n_steps, n)),
        rng.normal(size=(n_steps, n)),
        starts,
        rng.exponential(20.0, (n_steps, n)),
        rng.normal(size=n),
        rng.random(n) < 0.5,
    )


def test_advantages_are_the_definition() -> None:
    given = case()
    np.testing.assert_allclose(advantages(*given, 50.0, 0.9), by_hand(*given, 50.0, 0.9), rtol=1e-5, atol=1e-5)


def test_steps_without_time_do_not_discount() -> None:
    n_steps = 6
    rewards = np.zeros((n_steps, 1))
    rewards[-1] = -1.0
    zeros = np.zeros((n_steps, 1))
    dt = zeros.copy()
    dt[2] = 100.0
    got = advantages(rewards, zeros, zeros, dt, np.zeros(1), np.ones(1, bool), 100.0, 1.0)[:, 0]
    np.testing.assert_allclose(got, [-np.exp(-1)] * 3 + [-1.0] * 3, rtol=1e-6)


def test_buffer_notes_time_and_scales_rewards() -> None:
    clock = iter(np.array([[1.0, 2.0], [3.0, 4.0]]))
    box, actions = spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(2)
    buffer = SemiMarkovBuffer(2, box, actions, n_envs=2, elapsed=lambda: next(clock), tau=10.0, reward_scale=0.5)
    for t in range(2):
        buffer.add(
            np.zeros((2, 3), np.float32),
            np.zeros((2, 1)),
            np.array([-1.0, -2.0]),
            np.full(2, t == 0),
            torch.zeros(2, 1),
            torch.zeros(2),
            action_masks=np.ones((2, 2), bool),
        )
    assert buffer.dt.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert buffer.rewards.tolist() == [[-0.5, -1.0], [-0.5, -1.0]]
    buffer.compute_returns_and_advantage(torch.zeros(2, 1), np.ones(2, bool))
    assert np.array_equal(buffer.returns, buffer.advantages)
    assert len(next(buffer.get(4)).observations) == 4
