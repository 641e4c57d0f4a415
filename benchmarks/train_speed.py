"""What the environment costs in training: ``python -m benchmarks.train_speed``.

MaskablePPO with the project's network learns from our environment and from one that costs nothing, with the same shapes and
as many valid candidates, in turn in one run. ``ratio`` is steps per second with ours over steps per second without.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sb3_contrib import MaskablePPO
from stable_baselines3.common.vec_env import VecEnv

from agents.network import CandidatePolicy
from benchmarks.common import alternate, report, timed
from envs.config import EnvConfig
from envs.sb3 import SB3VecEnv


class ZeroCostVecEnv(VecEnv):
    """Shows again and again what the real environment showed in some steps, at no cost.

    Args:
        env: environment to sample, with the spaces to copy. samples: steps that are kept.
        every: one step in so many is kept, so that they show whole episodes: the first steps, while queues are still short,
            have fewer valid candidates, and the learner's work grows with those.
    """

    def __init__(self, env: SB3VecEnv, samples: int = 32, every: int = 16) -> None:
        self.render_mode = None
        super().__init__(env.num_envs, env.observation_space, env.action_space)
        rng = np.random.default_rng(0)
        self._shown = []
        env.seed(0)
        env.reset()
        for step in range(samples * every):
            env.step_async(np.argmax(rng.random(env.masks.shape) * env.masks, axis=1))
            obs, reward, _, _ = env.step_wait()
            if step % every == 0:
                self._shown.append((obs.copy(), env.masks.copy(), reward.copy()))
        self._at = 0
        self._dones = np.zeros(env.num_envs, bool)
        self._infos: list[dict[str, Any]] = [{} for _ in range(env.num_envs)]

    def reset(self) -> np.ndarray:
        """Observations of the step shown now."""
        return self._shown[self._at][0]

    def step_async(self, actions: np.ndarray) -> None:
        """Go on to the next step shown; the actions do not matter."""
        self._at = (self._at + 1) % len(self._shown)

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:  # type: ignore[override]
        """Observations, rewards, dones (never), infos (empty)."""
        obs, _, reward = self._shown[self._at]
        return obs, reward, self._dones, self._infos

    def has_attr(self, attr_name: str) -> bool:
        """Whether it has action masks or the like."""
        return attr_name == "action_masks"

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> Any:
        """Action masks (N, A): the only method that is asked for."""
        return self._shown[self._at][1]

    def close(self) -> None:
        """Nothing to close."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The attribute, once for each world."""
        return [getattr(self, attr_name)] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set the attribute."""
        setattr(self, attr_name, value)

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """Never."""
        return [False] * self.num_envs


def learner(env: VecEnv, steps: int, batch_size: int, epochs: int) -> MaskablePPO:
    """A learner that has made its first rollout and update, so that nothing is left to warm up."""
    model = MaskablePPO(
        CandidatePolicy, env, n_steps=steps, batch_size=batch_size, n_epochs=epochs, seed=0, device="cpu", verbose=0
    )
    model.learn(steps * env.num_envs)
    return model


def training(model: MaskablePPO, rollouts: int) -> Callable[[], float]:
    """Steps per second of so many rollouts with their updates, as a function to call."""
    assert model.env is not None
    total = rollouts * model.n_steps * model.env.num_envs
    return lambda: total / timed(lambda: model.learn(total, reset_num_timesteps=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default=EnvConfig().profile, help="profile by name or path (default: %(default)s)")
    parser.add_argument("--worlds", type=int, default=128, help="worlds (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=32, help="steps of a world in a rollout (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=2048, help="of an update (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=4, help="of an update (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rollouts of each kind, in turn (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of torch and of the worlds (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    ours = SB3VecEnv(args.worlds, config=EnvConfig(profile=args.profile), threads=args.threads)
    nothing = ZeroCostVecEnv(ours)
    result = alternate(
        {
            "steps_per_s": training(learner(ours, args.steps, args.batch_size, args.epochs), 1),
            "steps_per_s_zero_cost": training(learner(nothing, args.steps, args.batch_size, args.epochs), 1),
        },
        args.rounds,
    )
    ratio = result["steps_per_s"] / result["steps_per_s_zero_cost"]
    report({"ratio": ratio} | result | {"profile": args.profile, "worlds": args.worlds, "threads": args.threads})


if __name__ == "__main__":
    main()
