"""Warm start: the network learns to decide as a teacher does, and to predict what the teacher's decisions cost.

In some worlds the teacher acts, in the others the learner does; the teacher labels all (after Ross et al., DAgger, 2011), so
that the learner also knows what the teacher would do where the teacher would not have gone.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from agents.learned.network import CandidatePolicy
from agents.policies.base import Policy
from envs.sb3 import SB3VecEnv
from envs.scheduling.observation import N_CANDIDATE, N_SUMMARY


@dataclass(frozen=True)
class ImitateConfig:
    """Settings of the warm start.

    Attributes:
        rounds: rollouts, each followed by learning; 0: no warm start.
        steps: decisions of each world a round.
        epochs: passes over the data a round.
        batch_size: observations a gradient step.
        learning_rate: of Adam.
        teacher_share: share of worlds in which the teacher acts, after the first round (in which it acts in all).
        smoothing: probability mass spread over all valid actions in the labels, so that PPO still explores.
        value_coef: weight of the value's squared error.
    """

    rounds: int = 3
    steps: int = 96
    epochs: int = 3
    batch_size: int = 2048
    learning_rate: float = 2e-3
    teacher_share: float = 0.5
    smoothing: float = 0.02
    value_coef: float = 0.5


@dataclass(frozen=True)
class ImitateResult:
    """How it went.

    Attributes:
        agreement: share of decisions of the last round in which the network's best action is the teacher's.
        reward_scale: factor that gives the teacher's returns a standard deviation of 1.
        seconds: time it took.
        steps: decisions taken in all worlds.
    """

    agreement: float
    reward_scale: float
    seconds: float
    steps: int


@dataclass
class _Rollout:
    obs: np.ndarray  # (T, N, O)
    labels: np.ndarray  # (T, N)
    returns: np.ndarray  # (T, N)
    known: np.ndarray  # (T, N): whether enough time followed for the return to be known


def discounted(
    rewards: np.ndarray, dones: np.ndarray, dt_ms: np.ndarray, tau_ms: float
) -> tuple[np.ndarray, np.ndarray]:
    """Discounted returns (T, N), and whether the episode or at least 2 tau lies after each step (T, N)."""
    returns = np.zeros(rewards.shape)
    known = np.zeros(rewards.shape, bool)
    ahead = np.zeros(rewards.shape[1])
    left = np.zeros(rewards.shape[1])
    for t in range(len(rewards) - 1, -1, -1):
        alive = ~dones[t]
        ahead = rewards[t] + np.exp(-dt_ms[t] / tau_ms) * alive * ahead
        left = np.where(alive, dt_ms[t] + left, np.inf)
        returns[t] = ahead
        known[t] = left >= 2.0 * tau_ms
    return returns, known


def _roll(
    policy: CandidatePolicy, env: SB3VecEnv, teacher: Policy, steps: int, share: float, tau_ms: float
) -> _Rollout:
    n = env.num_envs
    worlds = env.env.worlds
    obs = np.zeros((steps, n, worlds.obs.shape[1]), np.float32)
    labels = np.zeros((steps, n), np.int64)
    rewards, dt_ms = np.zeros((steps, n)), np.zeros((steps, n))
    dones = np.zeros((steps, n), bool)
    wakes = np.zeros(n)
    nobody = np.zeros(n, bool)
    teaches = np.arange(n) < round(share * n)
    for t in range(steps):
        obs[t] = worlds.obs
        # The batch's drop scale and timer are the environment's; the teacher only chooses.
        teacher.decide_all(worlds.sim.state, worlds.sim.tables, nobody, labels[t], wakes)
        actions = labels[t].copy()
        if not teaches.all():
            with torch.no_grad():
                chosen = policy(torch.as_tensor(worlds.obs[~teaches]))[0]
            actions[~teaches] = chosen.numpy()
        _, rewards[t], dones[t], _ = env.step(actions)
        dt_ms[t] = env.dt
    returns, known = discounted(rewards, dones, dt_ms, tau_ms)
    return _Rollout(obs, labels, returns, known & teaches)


def spread_out(env: SB3VecEnv, teacher: Policy, limit: int = 4000) -> int:
    """Let the teacher act until every world has ended an episode, so that worlds stand at all ages; returns the steps."""
    worlds = env.env.worlds
    nobody, ended = np.zeros(env.num_envs, bool), np.zeros(env.num_envs, bool)
    actions, wakes = np.zeros(env.num_envs, np.int64), np.zeros(env.num_envs)
    steps = 0
    while steps < limit and not ended.all():
        teacher.decide_all(worlds.sim.state, worlds.sim.tables, nobody, actions, wakes)
        ended |= env.step(actions)[2]
        steps += 1
    return steps


def normalise(policy: CandidatePolicy, obs: np.ndarray) -> None:
    """Set the network's input normalisation from observations (R, O)."""
    rows = obs[:, :-N_SUMMARY].reshape(-1, N_CANDIDATE)
    rows = rows[rows[:, 0] > 0.5]
    policy.net.set_normalisation(torch.as_tensor(rows), torch.as_tensor(obs[:, -N_SUMMARY:]))


def return_scale(policy: CandidatePolicy, env: SB3VecEnv, teacher: Policy, steps: int, tau_ms: float) -> float:
    """Factor that gives the learner's own returns a standard deviation of 1, from ``steps`` decisions of each world."""
    returns = _roll(policy, env, teacher, steps, 0.0, tau_ms).returns[: steps // 2 + 1]
    return 1.0 / max(float(returns.std()), 1e-3)


def imitate(
    policy: CandidatePolicy, env: SB3VecEnv, teacher: Policy, config: ImitateConfig, tau_ms: float
) -> ImitateResult:
    """Teach ``policy`` what ``teacher`` does in ``env``; sets the input normalisation from the first round.

    Args:
        policy: learner. env: worlds, reset already. teacher: a policy of the registry, ready for ``env.num_envs`` schedulers.
        config: settings. tau_ms: time constant of the discount.
    """
    began = time.monotonic()
    steps = spread_out(env, teacher)
    optimizer = torch.optim.Adam(policy.net.parameters(), lr=config.learning_rate)
    scale = 1.0
    agreement = 0.0
    data: list[_Rollout] = []
    total = max(config.rounds * config.epochs, 1)
    passes = 0
    for i in range(config.rounds):
        data.append(_roll(policy, env, teacher, config.steps, 1.0 if i == 0 else config.teacher_share, tau_ms))
        if i == 0:
            normalise(policy, data[0].obs.reshape(-1, data[0].obs.shape[-1])[:50_000])
            spread = data[0].returns[data[0].known]
            scale = 1.0 / max(float(spread.std()), 1e-3) if len(spread) > 1 else 1.0
        for _ in range(config.epochs):
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * (1.0 - 0.9 * passes / total)
            agreement = _learn(policy, optimizer, data, config, scale)
            passes += 1
    steps += config.rounds * config.steps
    return ImitateResult(agreement, scale, time.monotonic() - began, steps * env.num_envs)


def _learn(
    policy: CandidatePolicy, optimizer: torch.optim.Optimizer, data: list[_Rollout], config: ImitateConfig, scale: float
) -> float:
    """One pass over all rollouts; returns the agreement on the last one."""
    n_steps, n = data[0].labels.shape
    order = np.random.permutation(len(data) * n_steps * n)
    agreed = seen = 0
    for start in range(0, len(order), config.batch_size):
        index = order[start : start + config.batch_size]
        which, at = np.divmod(index, n_steps * n)
        t, e = np.divmod(at, n)
        parts = [(data[r], t[which == r], e[which == r], r == len(data) - 1) for r in range(len(data))]
        obs = torch.as_tensor(np.concatenate([d.obs[i, j] for d, i, j, _ in parts]))
        labels = torch.as_tensor(np.concatenate([d.labels[i, j] for d, i, j, _ in parts]))
        target = torch.as_tensor(np.concatenate([d.returns[i, j] for d, i, j, _ in parts]) * scale).float()
        known = torch.as_tensor(np.concatenate([d.known[i, j] for d, i, j, _ in parts])).float()
        newest = torch.as_tensor(np.concatenate([np.full(len(i), last) for _, i, _, last in parts]))
        logits, value = policy.net(obs)
        log_p = torch.log_softmax(logits, 1)
        valid = logits > -1e7
        spread = (log_p * valid).sum(1) / valid.sum(1)
        hit = log_p.gather(1, labels[:, None]).squeeze(1)
        loss = -((1.0 - config.smoothing) * hit + config.smoothing * spread).mean()
        error = functional.mse_loss(value, target, reduction="none") * known
        loss = loss + config.value_coef * error.sum() / known.sum().clamp(min=1.0)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.net.parameters(), 1.0)
        optimizer.step()
        agreed += int(((logits.argmax(1) == labels) & newest).sum())
        seen += int(newest.sum())
    return agreed / max(seen, 1)
