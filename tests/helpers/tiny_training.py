"""A training run that takes moments: two models, few worlds, a small network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from agents.training.config import EvaluationConfig, PPOConfig, TrainConfig
from agents.training.lookahead import LookAheadConfig
from envs.simulation.config import EnvConfig

ENV = EnvConfig(
    profile="synthetic:0", models=("model0", "model1"), streams=2, load=(0.9, 0.9), duration_ms=(300.0, 300.0)
)
TINY = TrainConfig(
    n_timesteps=4 * 256,
    eval_freq=512,
    save_freq=256,
    threads=1,
    torch_threads=1,
    env=ENV,
    look_ahead=LookAheadConfig(rounds=1, steps=8, epochs=1),
    ppo=PPOConfig(n_envs=16, n_steps=16, batch_size=128, n_epochs=2, hidden=8, strait_bonus=2.0),
    evaluation=EvaluationConfig(loads=(1.0,), workloads=4, duration_ms=300.0, confirm=4),
)


def tiny(logdir: Path, **changes: Any) -> TrainConfig:
    """The tiny run in ``logdir``, with some settings changed."""
    return replace(TINY, logdir=str(logdir), **changes)
