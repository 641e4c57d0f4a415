"""The devices that a learner meets: one, or several at once, each with its worlds, its Strait and its comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from agents.evaluation.paired import PairedEvaluation
from agents.learned.names import resolve
from agents.learned.policy import LearnedPolicy, policy_in
from agents.policies.base import Policy
from agents.training.baseline import Baseline
from agents.training.config import TrainConfig
from agents.training.ppo.strait_bonus import StraitBonus
from envs.mixed import MixedVecEnv, TrainingEnv
from envs.profiles.profile import Profile
from envs.sb3 import SB3VecEnv
from envs.simulation.config import EnvConfig
from envs.simulation.worlds import Worlds

REFERENCE_UNIT_MS = 6.5  # mean solo latency of cpu2, which the times in ``TrainConfig.env`` are meant for


def device_settings(config: TrainConfig) -> list[EnvConfig]:
    """Settings of the worlds of each device: those of ``config.env`` where it is the only one.

    Else durations are scaled by each profile's mean solo latency, and all of its models are served.
    """
    if not config.profiles:
        return [config.env]
    settings = []
    for name in config.profiles:
        scale = float(Profile.load(name).tables().device["unit_ms"][0]) / REFERENCE_UNIT_MS
        env = config.env
        own = replace(
            env,
            profile=name,
            models=(),
            duration_ms=(scale * env.duration_ms[0], scale * env.duration_ms[1]),
            burst_ms=(scale * env.burst_ms[0], scale * env.burst_ms[1]),
            end_ms=scale * env.end_ms,
        )
        settings.append(own)
    return settings


def make_env(config: TrainConfig) -> TrainingEnv:
    """The worlds to learn in, spread evenly over the devices."""
    settings = device_settings(config)
    n, k = config.ppo.n_envs, len(settings)
    if k == 1:
        return SB3VecEnv(n, config=settings[0], threads=config.threads)
    share = [n * (i + 1) // k - n * i // k for i in range(k)]
    return MixedVecEnv(
        [SB3VecEnv(m, config=own, threads=config.threads) for m, own in zip(share, settings, strict=True)]
    )


class Device:
    """One device of a training run.

    Args:
        part: its worlds.
        config: settings of the run.

    Attributes:
        strait: values of the parameters of the Strait that the network corrects here.
        baseline: what the reference does with the episodes under way.
    """

    def __init__(self, part: SB3VecEnv, config: TrainConfig) -> None:
        self.part = part
        self.config = config
        self.settings = part.env.worlds.config
        self.name = self.settings.profile
        self.strait = self._resolve("strait", 1, config.strait_tuned).vector
        self.baseline = Baseline(self.worlds, self._resolve(config.reference, part.num_envs))

    @property
    def worlds(self) -> Worlds:
        """Its worlds."""
        return self.part.env.worlds

    def _resolve(self, name: str, n: int, use_tuned: bool = True) -> Policy:
        """A policy for n schedulers, with parameters tuned for this device unless told otherwise."""
        return resolve(name, n, use_tuned, self.config.tuned_for or self.name)[0]

    def strait_policy(self) -> Policy:
        """The Strait that the network corrects, for all worlds."""
        policy = self._resolve("strait", self.part.num_envs)
        policy.vector = np.asarray(self.strait, float)
        return policy

    def follow(self, strait: np.ndarray) -> None:
        """Let the network correct Strait with these values of its parameters, and mark its choices in the observations."""
        self.strait = np.asarray(strait, float)
        self.marks = StraitBonus(self.worlds, self.strait)
        self.part.observed = self.marks.observed

    def begin_baseline(self) -> None:
        """From now on rewards are relative to the reference."""
        self.part.began = self.baseline.began

    def learned(self, weights: Mapping[str, np.ndarray]) -> LearnedPolicy:
        """The network with these weights as it decides on this device."""
        return policy_in(self.settings, weights, self.strait)

    def comparison(self, workloads: int, seed: int) -> PairedEvaluation:
        """The reference's score on held-out workloads."""
        c = self.config.evaluation
        reference = self._resolve(self.config.reference, workloads)
        duration_ms = c.duration_ms * self.settings.duration_ms[1] / self.config.env.duration_ms[1]
        return PairedEvaluation(self.settings, self.worlds.profile, reference, c.loads, workloads, duration_ms, seed)
