"""What a new learner needs before it learns: worlds at all ages, normalised inputs, and rewards of a common size."""

from __future__ import annotations

import numpy as np
import torch

from agents.learned.network import CandidatePolicy
from agents.policies.base import Policy
from envs.sb3 import SB3VecEnv
from envs.scheduling.observation import N_CANDIDATE, N_SUMMARY, VALID

STEPS = 96  # decisions of each world that normalisation and reward scale are taken from
MOST_OBSERVATIONS = 50_000
MOST_STEPS = 4000  # decisions of each world after which even worlds whose episode did not end count as spread out


def spread_out(env: SB3VecEnv, strait: Policy) -> None:
    """Let Strait act until every world has ended an episode, so that worlds stand at all ages."""
    sim, ended = env.env.worlds.sim, np.zeros(env.num_envs, bool)
    for _ in range(MOST_STEPS):
        if ended.all():
            return
        done = env.step(strait.actions(sim.state, sim.tables))[2]
        strait.forget(done)
        ended |= done


def normalise(policy: CandidatePolicy, env: SB3VecEnv, strait: Policy) -> None:
    """Set the network's input normalisation from what Strait meets."""
    worlds, seen = env.env.worlds, []
    for _ in range(STEPS):
        seen.append(worlds.obs.copy())
        strait.forget(env.step(strait.actions(worlds.sim.state, worlds.sim.tables))[2])
    obs = np.concatenate(seen)[:MOST_OBSERVATIONS]
    rows = obs[:, :-N_SUMMARY].reshape(-1, N_CANDIDATE)
    policy.net.set_normalisation(torch.as_tensor(rows[rows[:, VALID] > 0.5]), torch.as_tensor(obs[:, -N_SUMMARY:]))


def return_scale(policy: CandidatePolicy, env: SB3VecEnv, tau_ms: float) -> float:
    """Factor that gives the learner's own discounted returns a standard deviation of 1."""
    rewards, dt_ms = np.zeros((STEPS, env.num_envs)), np.zeros((STEPS, env.num_envs))
    dones = np.zeros((STEPS, env.num_envs), bool)
    for t in range(STEPS):
        with torch.no_grad():
            actions = policy(torch.as_tensor(env.env.worlds.obs))[0].numpy()
        _, rewards[t], dones[t], _ = env.step(actions)
        dt_ms[t] = env.dt
    returns = discounted(rewards, dones, dt_ms, tau_ms)
    # Those of the second half see too little of their future.
    return 1.0 / max(float(returns[: STEPS // 2 + 1].std()), 1e-3)


def discounted(rewards: np.ndarray, dones: np.ndarray, dt_ms: np.ndarray, tau_ms: float) -> np.ndarray:
    """Discounted returns (T, N) of rewards (T, N), where ``dones`` ends an episode and each step takes ``dt_ms``."""
    returns = np.zeros(rewards.shape)
    ahead = np.zeros(rewards.shape[1])
    for t in range(len(rewards) - 1, -1, -1):
        ahead = rewards[t] + np.exp(-dt_ms[t] / tau_ms) * ~dones[t] * ahead
        returns[t] = ahead
    return returns
