"""An environment for TorchRL, whose policies see which actions are valid: ``pip install torchrl`` beside the project.

TorchRL takes a Gymnasium environment as it is. What has to be added is the mask of valid actions, which is in the infos: it
becomes a part of what is observed, and samples are drawn of valid actions only.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import torch
from torchrl.data import Binary, Composite
from torchrl.envs import ActionMask, GymWrapper, TransformedEnv
from torchrl.envs.gym_like import default_info_dict_reader

import envs  # noqa: F401 (registers the environments)


def make(name: str = "Strait/DualPriority-v2", **settings: Any) -> TransformedEnv:
    """The environment of an id, with ``action_mask`` in its tensordicts."""
    env = gym.make(name, **settings)
    wrapped = GymWrapper(env, categorical_action_encoding=True)
    mask = Binary(int(env.action_space.n), dtype=torch.bool)
    wrapped.set_info_dict_reader(default_info_dict_reader(["action_mask"], Composite(action_mask=mask)))
    return TransformedEnv(wrapped, ActionMask())


if __name__ == "__main__":
    print(make().rollout(1000)["next", "reward"].sum().item())
