"""What the environment costs in training: ``python -m benchmarks.train_speed``.

MaskablePPO with the project's network learns alternately from our environment and from one that costs nothing. The second
repeats what the first has just shown, so that both learners do the same work (which grows with the number of valid candidates).
``ratio`` is steps per second with ours over steps per second with the other.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.buffers import MaskableRolloutBuffer
from stable_baselines3.common.vec_env import VecEnv

from agents.learned.network import CandidatePolicy
from benchmarks.common.command import as_command
from benchmarks.common.timing import alternate, timed
from envs.sb3 import SB3VecEnv
from envs.simulation.config import EnvConfig

STEPS = 32  # of a world in a rollout
AGE_STEPS = 2048  # of a world before any is timed


class ReplayVecEnv(SB3VecEnv):
    """Shows what a rollout buffer holds, at no cost: observations, masks, rewards and ends of episodes.

    Args:
        env: environment whose spaces to copy.
    """

    def __init__(self, env: SB3VecEnv) -> None:
        super().__init__(env.env)
        n, size = env.num_envs, env.observation_space.shape[0]  # type: ignore[index]
        self._obs = np.zeros((STEPS + 1, n, size), np.float32)
        self._masks = np.ones((STEPS, *env.masks.shape), bool)
        self._rewards, self._ended = np.zeros((STEPS, n), np.float32), np.zeros((STEPS, n), bool)
        self._step = 0

    def show(self, learner: MaskablePPO) -> None:
        """From the next step on show the latest rollout of ``learner``, which its update left flattened, world by world."""
        buffer = learner.rollout_buffer
        assert isinstance(buffer, MaskableRolloutBuffer) and learner._last_obs is not None
        for whole, flat in ((self._obs[:-1], buffer.observations), (self._masks, buffer.action_masks)):
            whole[...] = flat.reshape(self.num_envs, len(self._masks), -1).swapaxes(0, 1)
        self._obs[-1] = learner._last_obs
        self._rewards[...] = buffer.rewards
        self._ended[:-1] = buffer.episode_starts[1:]
        self._ended[-1] = learner._last_episode_starts
        self._step = 0

    @property
    def masks(self) -> np.ndarray:
        """(N, A) bool: valid actions now."""
        return self._masks[self._step % len(self._masks)]

    def reset(self) -> np.ndarray:
        """First observations of the rollout."""
        self._step = 0
        return self._obs[0]

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:  # type: ignore[override]
        """Observations, rewards, ends of episodes, infos (empty); the actions do not matter."""
        self._step += 1
        return self._obs[self._step], self._rewards[self._step - 1], self._ended[self._step - 1], self._empty


def learner(env: VecEnv) -> MaskablePPO:
    """A learner that has made its first rollout and update, so that nothing is left to warm up."""
    model = MaskablePPO(
        CandidatePolicy, env, n_steps=STEPS, batch_size=2048, n_epochs=4, seed=0, device="cpu", verbose=0
    )
    train(model)
    return model


def train(model: MaskablePPO) -> float:
    """One rollout with its update, from where the learner stands. Returns steps per second."""
    assert model.env is not None
    total = model.n_steps * model.env.num_envs
    return total / timed(lambda: model.learn(total, reset_num_timesteps=False))


def age(model: MaskablePPO, env: SB3VecEnv) -> None:
    """Play on with random valid actions until the worlds are spread over their episodes, as in a long training.

    They begin together with empty queues, hence few valid candidates, and the learner's work grows with those.
    """
    rng = np.random.default_rng(0)
    for _ in range(AGE_STEPS):
        env.step_async(np.argmax(rng.random(env.masks.shape) * env.masks, axis=1))
        model._last_obs, _, model._last_episode_starts, _ = env.step_wait()  # type: ignore[assignment]


@dataclass
class TrainSpeedBenchmark:
    """What to measure.

    Attributes:
        profile: shipped profile by name, or a JSON file.
        worlds: simulated side by side.
        rounds: rollouts of each kind, of which the median counts.
        threads: of torch and of the worlds.
    """

    profile: str = EnvConfig().profile
    worlds: int = 128
    rounds: int = 60
    threads: int = 2


def measure(config: TrainSpeedBenchmark) -> dict[str, Any]:
    """Measure; see the module for what is returned."""
    torch.set_num_threads(config.threads)
    env = SB3VecEnv(config.worlds, config=EnvConfig(profile=config.profile), threads=config.threads)
    ours = learner(env)
    age(ours, env)
    train(ours)
    replay = ReplayVecEnv(env)
    replay.show(ours)
    zero_cost = learner(replay)

    def train_on_replay() -> float:
        replay.show(ours)
        return train(zero_cost)

    runs = {"steps_per_s": lambda: train(ours), "steps_per_s_zero_cost": train_on_replay}
    result = alternate(runs, config.rounds)
    ratio = result["steps_per_s"] / result["steps_per_s_zero_cost"]
    return {"ratio": ratio, **result, "profile": config.profile, "worlds": config.worlds, "threads": config.threads}


main = as_command(measure, TrainSpeedBenchmark, "train_speed", __doc__)

if __name__ == "__main__":
    sys.exit(main())
