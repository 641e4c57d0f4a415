from __future__ import annotations

import numpy as np
import torch
from tiny_training import ENV

from agents.policies.registry import make_policy
from agents.training.config import PPOConfig
from agents.training.learner import make_model
from agents.training.warm_start import ImitateConfig, discounted, imitate
from envs.sb3 import SB3VecEnv


def test_returns_are_discounted_by_time_and_known_only_with_enough_after() -> None:
    rewards = np.array([[0.0], [-1.0], [0.0], [-1.0]])
    dones = np.array([[False], [True], [False], [False]])
    dt = np.full((4, 1), 10.0)
    returns, known = discounted(rewards, dones, dt, 10.0)
    np.testing.assert_allclose(returns[:, 0], [-np.exp(-1), -1.0, -np.exp(-1), -1.0])
    assert known[:, 0].tolist() == [True, True, True, False]


def test_network_learns_to_decide_as_the_teacher() -> None:
    env = SB3VecEnv(32, config=ENV)
    env.seed(0)
    env.reset()
    model = make_model(PPOConfig(n_envs=32, n_steps=16, hidden=16), env, 0)
    teacher = make_policy("strait", 32)
    before = model.policy.net.score.weight.clone()  # type: ignore[union-attr]
    result = imitate(model.policy, env, teacher, ImitateConfig(rounds=2, steps=48, batch_size=256, epochs=6), 100.0)  # type: ignore[arg-type]
    assert result.agreement > 0.6
    assert result.reward_scale > 0 and result.steps >= 32 * 96
    assert not torch.equal(before, model.policy.net.score.weight)  # type: ignore[union-attr]
    assert torch.all(model.policy.net.candidate_std > 0)  # type: ignore[union-attr]


def test_no_rounds_leave_the_weights() -> None:
    env = SB3VecEnv(4, config=ENV)
    env.reset()
    model = make_model(PPOConfig(n_envs=4, n_steps=16, hidden=4), env, 0)
    before = {k: v.clone() for k, v in model.policy.net.state_dict().items()}  # type: ignore[union-attr]
    result = imitate(model.policy, env, make_policy("strait", 4), ImitateConfig(rounds=0), 100.0)  # type: ignore[arg-type]
    assert result.reward_scale == 1.0
    assert all(torch.equal(v, before[k]) for k, v in model.policy.net.state_dict().items())  # type: ignore[union-attr]
