"""Rollout buffer of a semi-Markov decision process: the discount of a step is a function of the time that it took.

Decisions of a scheduler are not evenly spaced: several fall on one instant, then milliseconds pass. With a discount a step,
deferring often would make violations look far away. Here a reward that lies ``dt`` mean solo latencies ahead counts
``exp(-dt / tau)`` (Bradtke and Duff, Reinforcement Learning Methods for Continuous-Time Markov Decision Problems, 1994).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sb3_contrib.common.maskable.buffers import MaskableRolloutBuffer


def advantages(
    rewards: np.ndarray,
    values: np.ndarray,
    starts: np.ndarray,
    dt: np.ndarray,
    last_values: np.ndarray,
    dones: np.ndarray,
    tau: float,
    gae_lambda: float,
) -> np.ndarray:
    """Generalised advantage estimates (Schulman et al., 2016) with the discount ``exp(-dt / tau)`` of each step.

    Args:
        rewards: (T, N). values: (T, N) of the state before each step. starts: (T, N) whether an episode began there.
        dt: (T, N) time that each step took, in mean solo latencies.
        last_values: (N,) of the state after the last step. dones: (N,) whether the last step ended the episode.
        tau: time constant, in the same. gae_lambda: trace decay a step.

    Returns:
        (T, N) float32.
    """
    out = np.zeros_like(rewards, dtype=np.float32)
    gamma = np.exp(-dt / tau)
    trace = np.zeros(rewards.shape[1])
    after = last_values.astype(np.float64)
    alive = 1.0 - dones.astype(np.float64)
    for t in range(len(rewards) - 1, -1, -1):
        error = rewards[t] + gamma[t] * alive * after - values[t]
        trace = error + gamma[t] * gae_lambda * alive * trace
        out[t] = trace
        after = values[t]
        alive = 1.0 - starts[t]
    return out


class SemiMarkovBuffer(MaskableRolloutBuffer):
    """sb3-contrib's buffer with the time of each step.

    Args:
        *args: as ``MaskableRolloutBuffer``; its gamma is not used.
        elapsed: gives (N,) time that the last step of each world took; asked once for each ``add``.
        tau: time constant of the discount.
        reward_scale: factor on rewards, so that values are about 1 in size.
        **kwargs: as ``MaskableRolloutBuffer``.
    """

    dt: np.ndarray

    def __init__(
        self,
        *args: Any,
        elapsed: Callable[[], np.ndarray],
        tau: float,
        reward_scale: float = 1.0,
        **kwargs: Any,
    ) -> None:
        self.elapsed = elapsed
        self.tau = tau
        self.reward_scale = reward_scale
        super().__init__(*args, **kwargs)

    def reset(self) -> None:
        """Forget all steps."""
        self.dt = np.zeros((self.buffer_size, self.n_envs))
        super().reset()

    def add(self, obs: np.ndarray, action: np.ndarray, reward: np.ndarray, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Add one step of all worlds, and the time that it took."""
        self.dt[self.pos] = self.elapsed()
        super().add(obs, action, reward * self.reward_scale, *args, **kwargs)

    def compute_returns_and_advantage(self, last_values: torch.Tensor, dones: np.ndarray) -> None:
        """Fill ``advantages`` and ``returns``."""
        self.advantages = advantages(
            self.rewards,
            self.values,
            self.episode_starts,
            self.dt,
            last_values.cpu().numpy().flatten(),
            dones,
            self.tau,
            self.gae_lambda,
        )
        self.returns = self.advantages + self.values
