"""What a new learner needs before it learns: worlds at all ages, normalised inputs, and rewards of a common size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from agents.evaluation.rollout import play_until
from agents.learned.network import CandidatePolicy
from agents.policies.base import Policy
from envs.mixed import TrainingEnv, convert_actions
from envs.scheduling.observation import N_CANDIDATE, N_SUMMARY, VALID

STEPS = 96  # decisions of each world that normalisation and reward scale are taken from
MOST_OBSERVATIONS = 50_000


def actions_of(policies: Sequence[Policy], env: TrainingEnv) -> np.ndarray:
    """(N,) what the policies, one for each part of ``env``, would do now."""
    n_actions = env.masks.shape[1]
    own = []
    for part, policy in zip(env.parts, policies, strict=True):
        sim = part.env.worlds.sim
        own.append(convert_actions(policy.actions(sim.state, sim.tables), sim.n_actions, n_actions))
    return np.concatenate(own)


def spread_out(env: TrainingEnv, strait: Sequence[Policy]) -> None:
    """Let Strait act in each world up to a time of its own, so that worlds stand at all ages."""
    for part, policy in zip(env.parts, strait, strict=True):
        world = part.env.worlds.sim.world
        last_ms = world.request["arrival"][np.arange(part.num_envs), world.episode["n"] - 1]
        play_until(policy, part.env.worlds.sim.arrays, np.random.random(part.num_envs) * last_ms)
    env.refresh()


def normalise(policy: CandidatePolicy, env: TrainingEnv, strait: Sequence[Policy]) -> None:
    """Set the network's input normalisation from what Strait meets."""
    rows, summaries = [], []
    left = MOST_OBSERVATIONS
    for _ in range(STEPS):
        candidates = env.obs[:left, :-N_SUMMARY].reshape(-1, N_CANDIDATE)
        rows.append(candidates[candidates[:, VALID] > 0.5])
        summaries.append(env.obs[:left, -N_SUMMARY:].copy())
        left -= len(summaries[-1])
        env.step(actions_of(strait, env))
    policy.net.set_normalisation(torch.as_tensor(np.concatenate(rows)), torch.as_tensor(np.concatenate(summaries)))


def return_scale(policy: CandidatePolicy, env: TrainingEnv, tau: float) -> float:
    """Factor that gives the learner's own discounted returns a standard deviation of 1."""
    rewards, elapsed = np.zeros((STEPS, env.num_envs)), np.zeros((STEPS, env.num_envs))
    dones = np.zeros((STEPS, env.num_envs), bool)
    for t in range(STEPS):
        with torch.no_grad():
            actions = policy(torch.as_tensor(env.obs))[0].numpy()
        _, rewards[t], dones[t], _ = env.step(actions)
        elapsed[t] = env.elapsed
    returns = discounted(rewards, dones, elapsed, tau)
    # Those of the second half see too little of their future.
    return 1.0 / max(float(returns[: STEPS // 2 + 1].std()), 1e-3)


def discounted(rewards: np.ndarray, dones: np.ndarray, elapsed: np.ndarray, tau: float) -> np.ndarray:
    """Discounted returns (T, N) of rewards (T, N), where ``dones`` ends an episode and each step takes ``elapsed`` (T, N)."""
    returns = np.zeros(rewards.shape)
    ahead = np.zeros(rewards.shape[1])
    for t in range(len(rewards) - 1, -1, -1):
        ahead = rewards[t] + np.exp(-elapsed[t] / tau) * ~dones[t] * ahead
        returns[t] = ahead
    return returns
