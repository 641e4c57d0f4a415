"""The example for TorchRL: its specifications hold, and it takes valid actions only. Skips where TorchRL is not installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("torchrl", reason="needs torchrl (pip install torchrl)")


def test_a_rollout_takes_valid_actions_only() -> None:
    from torchrl.envs.utils import check_env_specs

    path = Path(__file__).resolve().parents[2] / "docs" / "examples" / "torchrl_env.py"
    spec = importlib.util.spec_from_file_location("torchrl_env", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    env = module.make("Strait/DualPriority-Tiny-v2")
    env.set_seed(1)
    check_env_specs(env)
    steps = env.rollout(300)
    assert len(steps) > 50
    taken = steps["action_mask"].gather(-1, steps["action"].unsqueeze(-1))
    assert taken.all() and not steps["action_mask"].all()
