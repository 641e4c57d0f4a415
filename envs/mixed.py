"""Worlds of several devices as one batch, so that one learner meets them all: observations are padded to the largest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from envs.sb3 import SB3VecEnv
from envs.scheduling.observation import LIMIT, N_SUMMARY, observation_size
from traces.errors import InputError


def pad_observations(obs: np.ndarray, out: np.ndarray) -> None:
    """Write observations (N, O) into ``out`` (N, O') of at least as many candidates; those that are added are not valid."""
    own = obs.shape[1] - N_SUMMARY
    out[:, :own] = obs[:, :own]
    out[:, own:-N_SUMMARY] = 0.0
    out[:, -N_SUMMARY:] = obs[:, -N_SUMMARY:]


def pad_masks(masks: np.ndarray, out: np.ndarray) -> None:
    """The same for masks (N, A) and (N, A'); DEFER is the last action of both."""
    own = masks.shape[1] - 1
    out[:, :own] = masks[:, :own]
    out[:, own:-1] = False
    out[:, -1] = masks[:, -1]


def convert_actions(actions: np.ndarray, n_from: int, n_to: int) -> np.ndarray:
    """Actions of a space of ``n_from`` in one of ``n_to``: DEFER is the last of both, candidates keep their places."""
    return np.where(actions == n_from - 1, n_to - 1, actions)


class MixedVecEnv(VecEnv):
    """Several ``SB3VecEnv`` side by side, which may have different devices, models and streams.

    The action space is that with the most candidates. Worlds with fewer have theirs first; DEFER is always the last action.
    What ``step`` returned is valid until the step after next, as with ``SB3VecEnv``.

    Args:
        parts: the environments, each with worlds of one device.

    Attributes:
        rows: slice of the batch that each part's worlds are.
    """

    def __init__(self, parts: Sequence[SB3VecEnv]) -> None:
        if not parts:
            raise InputError("MixedVecEnv: no environments; must be at least 1")
        self.parts = list(parts)
        bounds = np.cumsum([0] + [part.num_envs for part in parts])
        self.rows = [slice(int(a), int(b)) for a, b in zip(bounds, bounds[1:], strict=False)]
        n, n_actions = int(bounds[-1]), max(int(part.action_space.n) for part in parts)  # type: ignore[attr-defined]
        size = observation_size(n_actions - 1)
        super().__init__(n, spaces.Box(-LIMIT, LIMIT, (size,), np.float32), spaces.Discrete(n_actions))
        self._obs = [np.zeros((n, size), np.float32) for _ in range(2)]
        self._masks = [np.zeros((n, n_actions), bool) for _ in range(2)]

    @property
    def obs(self) -> np.ndarray:
        """(N, O) observations now; a view."""
        return self._obs[0]

    @property
    def masks(self) -> np.ndarray:
        """(N, A) bool: valid actions now; a view."""
        return self._masks[0]

    @property
    def elapsed(self) -> np.ndarray:
        """(N,) time that passed in the last step, in mean solo latencies of each world's models."""
        return np.concatenate([part.elapsed for part in self.parts])

    def _padded(self) -> np.ndarray:
        self._obs.reverse()
        self._masks.reverse()
        for part, rows in zip(self.parts, self.rows, strict=True):
            pad_observations(part.env.worlds.obs, self._obs[0][rows])
            pad_masks(part.masks, self._masks[0][rows])
        return self._obs[0]

    def reset(self) -> np.ndarray:
        """Begin an episode in every world."""
        for part, rows in zip(self.parts, self.rows, strict=True):
            part._seeds, part._options = self._seeds[rows], self._options[rows]
            part.reset()
        self._reset_seeds()
        self._reset_options()
        return self._padded()

    def refresh(self) -> None:
        """Observe worlds that somebody else has played."""
        for part in self.parts:
            part.refresh()
        self._padded()

    def step_async(self, actions: np.ndarray) -> None:
        """Note the actions (N,)."""
        for part, rows in zip(self.parts, self.rows, strict=True):
            own = int(part.action_space.n)  # type: ignore[attr-defined]
            part.step_async(convert_actions(actions[rows], self.masks.shape[1], own))

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:  # type: ignore[override]
        """Observations (N, O), rewards (N,), dones (N,), infos."""
        _, rewards, dones, infos = zip(*(part.step_wait() for part in self.parts), strict=True)
        obs = self._padded()
        flat = [info for part in infos for info in part]
        for i in np.flatnonzero(np.concatenate(dones)):
            final = np.zeros((1, obs.shape[1]), np.float32)
            pad_observations(flat[i]["terminal_observation"][None], final)
            flat[i]["terminal_observation"] = final[0]
        return obs, np.concatenate(rewards), np.concatenate(dones), flat

    def action_masks(self) -> np.ndarray:
        """(N, A) bool: valid actions now; a view."""
        return self.masks

    def close(self) -> None:
        """Close the environments."""
        for part in self.parts:
            part.close()

    def has_attr(self, attr_name: str) -> bool:
        """Whether every environment has it."""
        return hasattr(self, attr_name) or all(part.has_attr(attr_name) for part in self.parts)

    def _of_each(self, values: Iterable[list[Any]], indices: None | int | Iterable[int]) -> list[Any]:
        flat = [value for part in values for value in part]
        return [flat[i] for i in self._get_indices(indices)]

    def get_attr(self, attr_name: str, indices: None | int | Iterable[int] = None) -> list[Any]:
        """The attribute, once for each world asked for."""
        return self._of_each((part.get_attr(attr_name) for part in self.parts), indices)

    def set_attr(self, attr_name: str, value: Any, indices: None | int | Iterable[int] = None) -> None:
        """Set an attribute of every environment."""
        for part in self.parts:
            part.set_attr(attr_name, value)

    def env_method(  # type: ignore[override]
        self, method_name: str, *method_args: Any, indices: None | int | Iterable[int] = None, **method_kwargs: Any
    ) -> Any:
        """Call a method of every environment; "action_masks" gives the whole array (N, A), one row a world."""
        if method_name == "action_masks":
            return self.masks if indices is None else self.masks[list(self._get_indices(indices))]
        called = (part.env_method(method_name, *method_args, **method_kwargs) for part in self.parts)
        return self._of_each(called, indices)

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper], indices: None | int | Iterable[int] = None
    ) -> list[bool]:
        """No wrapper is around a single world."""
        return [False for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[np.ndarray | None]:
        """Pictures of the worlds."""
        return [image for part in self.parts for image in part.get_images()]


TrainingEnv = SB3VecEnv | MixedVecEnv
