"""What a new learner needs before it learns."""

from __future__ import annotations

import numpy as np

from agents.learned.network import CandidatePolicy
from agents.policies.registry import make_policy
from agents.training.warm_start import discounted, normalise, return_scale, spread_out
from envs.sb3 import SB3VecEnv
from envs.simulation.config import EnvConfig


def test_returns_are_discounted_by_time_and_end_with_the_episode() -> None:
    rewards = np.array([[0.0], [-1.0], [0.0], [-1.0]])
    dones = np.array([[False], [True], [False], [False]])
    returns = discounted(rewards, dones, np.full((4, 1), 10.0), 10.0)
    np.testing.assert_allclose(returns[:, 0], [-np.exp(-1), -1.0, -np.exp(-1), -1.0])


def test_worlds_are_spread_out_and_inputs_get_a_common_size() -> None:
    config = EnvConfig("synthetic:0", models=("model0", "model1"), streams=2, duration_ms=(200.0, 300.0))
    env = SB3VecEnv(8, config=config)
    env.seed(0)
    env.reset()
    strait = make_policy("strait", 8)
    np.random.seed(0)
    spread_out(env, [strait])
    ages = env.env.worlds.sim.state.scheduler["now"]
    assert np.ptp(ages) > 100.0 and ages.max() < 300.0 and len(set(ages.tolist())) == 8, "of episodes of 200 to 300 ms"
    again = env.obs.copy()
    env.refresh()
    np.testing.assert_array_equal(env.obs, again)
    policy = CandidatePolicy(env.observation_space, env.action_space, lambda _: 1e-3, hidden=8)
    normalise(policy, env, [strait])
    assert (policy.net.candidate_std > 0).all() and float(policy.net.candidate_mean.abs().max()) > 0
    assert np.isfinite(return_scale(policy, env, 100.0))
