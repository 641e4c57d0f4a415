"""MaskablePPO as this project runs it: discount by time, a hook after each update, an end by decisions or by time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from sb3_contrib import MaskablePPO

from agents.learned.network import CandidatePolicy
from agents.training.config import PPOConfig
from agents.training.ppo.buffer import SemiMarkovBuffer
from envs.mixed import TrainingEnv


class Clock:
    """Time that a run has taken and may take.

    Args:
        budget_s: see ``TrainConfig``. before_s: time that the run took before it was resumed.
    """

    def __init__(self, budget_s: float | None, before_s: float = 0.0) -> None:
        self.budget_s = budget_s
        self._began = time.monotonic() - before_s
        self._learning = 0.0
        self._last = 0.0
        self._longest = 0.0
        self.reserve_s = 0.0

    @property
    def seconds(self) -> float:
        """Time since the run began."""
        return time.monotonic() - self._began

    def begin_learning(self, reserve_s: float) -> None:
        """Learning begins now; ``reserve_s`` are kept for what follows it."""
        self.reserve_s = reserve_s
        self._learning = self._last = self.seconds

    def tick(self) -> None:
        """An update is done: notes how long one takes at most."""
        now = self.seconds
        self._longest = max(self._longest, now - self._last)
        self._last = now

    def share(self) -> float:
        """Share of the time for learning that is over; 0 without a budget."""
        if self.budget_s is None:
            return 0.0
        whole = self.budget_s - self.reserve_s - self._longest - self._learning
        return min(max((self.seconds - self._learning) / max(whole, 1e-3), 0.0), 1.0)


class SchedulerPPO(MaskablePPO):
    """MaskablePPO that calls ``UpdateCallback``s after each update, and stops there.

    Attributes:
        updated: called after each update.
        stopping: asked before each rollout.
        share: share of the time that is over; the learning rate falls with it where it is ahead of the decisions.
    """

    updated: Callable[[], None]
    stopping: Callable[[], bool]
    share: Callable[[], float]

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> bool:
        """Collect a rollout, unless it is time to stop."""
        return not self.stopping() and super().collect_rollouts(*args, **kwargs)

    def train(self) -> None:
        """Update, then call the callbacks."""
        super().train()
        self.updated()

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        self._current_progress_remaining = 1.0 - max(num_timesteps / max(total_timesteps, 1), self.share())


def make_model(config: PPOConfig, env: TrainingEnv, seed: int, strait: Sequence[float]) -> SchedulerPPO:
    """The learner, with new weights; ``strait``: values of Strait's parameters."""
    c = config

    def rate(remaining: float) -> float:
        return c.learning_rate * (c.final_rate + (1.0 - c.final_rate) * remaining)

    return SchedulerPPO(
        CandidatePolicy,
        env,
        learning_rate=rate,
        n_steps=c.n_steps,
        batch_size=min(c.batch_size, c.n_envs * c.n_steps),
        n_epochs=c.n_epochs,
        gae_lambda=c.gae_lambda,
        clip_range=c.clip_range,
        ent_coef=c.ent_coef,
        vf_coef=c.vf_coef,
        max_grad_norm=c.max_grad_norm,
        target_kl=c.target_kl,
        rollout_buffer_class=SemiMarkovBuffer,
        rollout_buffer_kwargs={"elapsed": lambda: env.elapsed, "tau": c.tau},
        policy_kwargs={"hidden": c.hidden, "strait_bonus": c.strait_bonus, "strait": strait},
        seed=seed,
        device="cpu",
    )
