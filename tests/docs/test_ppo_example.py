"""The one-file PPO: it runs, takes valid actions only, and its advantages are those of the definition."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

PATH = Path(__file__).resolve().parents[2] / "docs" / "examples" / "ppo_one_file.py"


@pytest.fixture(scope="module")
def ppo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ppo_one_file", PATH)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_is_one_short_file() -> None:
    assert len(PATH.read_text().splitlines()) <= 250


def test_a_few_hundred_steps_are_trained(ppo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (
        "--env Strait/DualPriority-Tiny-v2 --total_steps 768 --num_envs 4 --num_steps 64 --minibatches 2 --hidden 16"
    )
    args = ppo.parse([*words.split(), "--logdir", str(tmp_path)])
    took: list[bool] = []
    step = ppo.Worlds.step

    def checked(worlds, action, horizon_ms):
        took.extend(worlds.mask[torch.arange(len(action)), action].tolist())
        return step(worlds, action, horizon_ms)

    monkeypatch.setattr(ppo.Worlds, "step", checked)
    result = ppo.train(args)
    assert len(took) == 768 == result["steps"] and all(took)
    assert 0.0 <= result["violation_rate/high"] <= 1.0 and result["episode/return"] <= 0.0
    from safetensors.torch import load_file

    again, fresh = ppo.Agent(16), ppo.Agent(16)
    again.load_state_dict(load_file(tmp_path / "agent.safetensors"))
    assert all(torch.isfinite(weight).all() for weight in again.parameters())
    assert again.dispatch[0].weight.shape == fresh.dispatch[0].weight.shape
    assert any(path.name.startswith("events.out.tfevents") for path in tmp_path.iterdir())


def test_advantages_are_sums_of_discounted_errors_up_to_the_end_of_the_episode(ppo: ModuleType) -> None:
    rng = np.random.default_rng(0)
    rollout = ppo.Rollout.empty(5, 2, 3, 4)
    for name in ("reward", "value"):
        getattr(rollout, name)[:] = torch.as_tensor(rng.normal(size=(5, 2)), dtype=torch.float32)
    rollout.discount[:] = torch.as_tensor(rng.uniform(0.5, 1.0, (5, 2)), dtype=torch.float32)
    rollout.discount[2, 0] = 0.0  # world 0 ends here
    last = torch.tensor([3.0, -2.0])
    found = rollout.advantages(last, 0.9)
    value = torch.cat([rollout.value, last[None]])
    for world in range(2):
        for t in range(5):
            total, weight = 0.0, 1.0
            for k in range(t, 5):
                discount = float(rollout.discount[k, world])
                error = (
                    float(rollout.reward[k, world]) + discount * float(value[k + 1, world] - 0) - float(value[k, world])
                )
                total, weight = total + weight * error, weight * discount * 0.9
            assert float(found[t, world]) == pytest.approx(total, abs=1e-5)


def test_what_cannot_be_dispatched_is_never_chosen(ppo: ModuleType) -> None:
    agent = ppo.Agent(8)
    actions = 5
    observation = torch.randn(6, (actions - 1) * ppo.N_CANDIDATE + ppo.N_SUMMARY)
    mask = torch.zeros(6, actions, dtype=torch.bool)
    mask[:, -1] = True
    mask[3:, 1] = True
    distribution, value = agent(observation, mask)
    assert value.shape == (6,) and torch.equal(distribution.probs > 0, mask)
