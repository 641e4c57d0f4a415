"""What the environment costs in training: ``python -m benchmarks.train_speed``.

MaskablePPO with the project's network learns from our environment and from one that costs nothing, in turn in one run. The
second shows again what the first has just shown, so that both learners do the same work: it grows with the candidates that are
valid. ``ratio`` is steps per second with ours over steps per second without.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.buffers import MaskableRolloutBuffer
from stable_baselines3.common.vec_env import VecEnv

from agents.learned.network import CandidatePolicy
from benchmarks.common.timing import alternate, report, timed
from envs.sb3 import SB3VecEnv
from envs.simulation.config import EnvConfig


class ReplayVecEnv(VecEnv):
    """Shows what a rollout buffer holds, at no cost: observations, masks, rewards and ends of episodes.

    Args:
        env: environment whose spaces to copy. steps: steps of a world in a rollout.
    """

    def __init__(self, env: SB3VecEnv, steps: int) -> None:
        self.render_mode = None
        super().__init__(env.num_envs, env.observation_space, env.action_space)
        n, size = env.num_envs, env.observation_space.shape[0]  # type: ignore[index]
        self._obs = np.zeros((steps + 1, n, size), np.float32)
        self._masks = np.ones((steps, *env.masks.shape), bool)
        self._rewards = np.zeros((steps, n), np.float32)
        self._dones = np.zeros((steps, n), bool)
        self._at = 0
        self._infos: list[dict[str, Any]] = [{} for _ in range(n)]

    def show(self, learner: MaskablePPO) -> None:
        """From the next step on show the rollout that ``learner`` made last; an update left it flattened, world by world."""
        buffer = learner.rollout_buffer
        assert isinstance(buffer, MaskableRolloutBuffer) and learner._last_obs is not None
        for whole, flat in ((self._obs[:-1], buffer.observations), (self._masks, buffer.action_masks)):
            whole[...] = flat.reshape(self.num_envs, len(self._masks), -1).swapaxes(0, 1)
        self._obs[-1] = learner._last_obs
        self._rewards[...] = buffer.rewards
        self._dones[:-1] = buffer.episode_starts[1:]
        self._dones[-1] = learner._last_episode_starts
        self._at = 0

    def reset(self) -> np.ndarray:
        """First observations of the rollout."""
        self._at = 0
        return self._obs[0]

    def step_async(self, actions: np.ndarray) -> None:
        """Go on to the next step; the actions do not matter."""
        self._at += 1

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:  # type: ignore[override]
        """Observations, rewards, dones, infos (empty)."""
        done = self._at - 1
        return self._obs[self._at], self._rewards[done], self._dones[done], self._infos

    def has_attr(self, attr_name: str) -> bool:
        """Whether it has action masks or the like."""
        return attr_name == "action_masks"

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> Any:
        """Action masks (N, A): the only method that is asked for."""
        return self._masks[self._at % len(self._masks)]

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
    train(model)
    return model


def train(model: MaskablePPO) -> float:
    """One rollout with its update, from where the learner stands. Returns steps per second."""
    assert model.env is not None
    total = model.n_steps * model.env.num_envs
    return total / timed(lambda: model.learn(total, reset_num_timesteps=False))


def age(model: MaskablePPO, env: SB3VecEnv, steps: int) -> None:
    """Play on with random valid actions, so that the worlds stand anywhere in their episodes as they do in a long training.

    They begin together, with empty queues, hence few valid candidates, and the learner's work grows with those.
    """
    rng = np.random.default_rng(0)
    for _ in range(steps):
        env.step_async(np.argmax(rng.random(env.masks.shape) * env.masks, axis=1))
        model._last_obs, _, model._last_episode_starts, _ = env.step_wait()  # type: ignore[assignment]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default=EnvConfig().profile, help="profile by name or path (default: %(default)s)")
    parser.add_argument("--worlds", type=int, default=128, help="worlds (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=32, help="steps of a world in a rollout (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=2048, help="of an update (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=4, help="of an update (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=60, help="rollouts of each kind, in turn (default: %(default)s)")
    parser.add_argument(
        "--age", type=int, default=2048, help="steps of a world before any count (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=2, help="of torch and of the worlds (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    settings = (args.steps, args.batch_size, args.epochs)
    env = SB3VecEnv(args.worlds, config=EnvConfig(profile=args.profile), threads=args.threads)
    ours = learner(env, *settings)
    age(ours, env, args.age)
    train(ours)
    replay = ReplayVecEnv(env, args.steps)
    replay.show(ours)
    nothing = learner(replay, *settings)

    def train_on_replay() -> float:
        replay.show(ours)
        return train(nothing)

    runs = {"steps_per_s": lambda: train(ours), "steps_per_s_zero_cost": train_on_replay}
    result = alternate(runs, args.rounds)
    ratio = result["steps_per_s"] / result["steps_per_s_zero_cost"]
    report({"ratio": ratio} | result | {"profile": args.profile, "worlds": args.worlds, "threads": args.threads})


if __name__ == "__main__":
    main()
