"""The same worlds as a stable-baselines3 ``VecEnv``: views of the batch's arrays, nothing copied."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env import VecEnv

from envs.vector import DualPriorityVectorEnv
from traces.errors import InputError


def _same_step(n: int, settings: dict[str, Any]) -> DualPriorityVectorEnv:
    return DualPriorityVectorEnv(n, copy=False, autoreset_mode=AutoresetMode.SAME_STEP, **settings)


class SB3VecEnv(VecEnv):
    """A ``DualPriorityVectorEnv`` as stable-baselines3 and sb3-contrib want it.

    Observations and dones alternate between two buffers, so what ``step`` returned is valid until the step after next;
    rewards, ``elapsed`` and ``masks`` are valid until the next step. ``infos`` is one list of empty dictionaries that is
    returned again and again; a world whose episode ended has, for that step only, "terminal_observation", "episode" {"r",
    "l", "t"} (return, decisions, ms), "outcomes" (2, 6) requests by priority and outcome, and "TimeLimit.truncated" False.

    Args:
        env: vector environment, or the number of worlds of one to make with ``settings``.
        **settings: of ``DualPriorityVectorEnv``.

    Attributes:
        began: called with (N,) bool, which worlds have just begun an episode.
        observed: called after every reset and step, before the observations are returned.
    """

    def __init__(self, env: DualPriorityVectorEnv | int, **settings: Any) -> None:
        self.env = _same_step(env, settings) if isinstance(env, int) else env
        if self.env.autoreset_mode is not AutoresetMode.SAME_STEP:
            raise InputError(f"SB3VecEnv: autoreset_mode is {self.env.autoreset_mode.value}; expected SAME_STEP")
        super().__init__(self.env.num_envs, self.env.single_observation_space, self.env.single_action_space)
        self._empty: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        self._infos = list(self._empty)
        self._ended: np.ndarray = np.zeros(0, np.int64)
        self._dones = [np.zeros(self.num_envs, bool) for _ in range(2)]
        self._actions: np.ndarray = np.zeros(self.num_envs, np.int64)
        self.began: Callable[[np.ndarray], None] | None = None
        self.observed: Callable[[], None] | None = None

    @property
    def obs(self) -> np.ndarray:
        """(N, O) observations now; a view."""
        return self.env.worlds.obs

    @property
    def masks(self) -> np.ndarray:
        """(N, A) bool: valid actions now; a view."""
        return self.env.worlds.masks

    @property
    def parts(self) -> list[SB3VecEnv]:
        """The environments that this one is made of (``envs.mixed``): itself."""
        return [self]

    @property
    def rows(self) -> list[slice]:
        """Rows of the batch that each part is."""
        return [slice(0, self.num_envs)]

    @property
    def elapsed(self) -> np.ndarray:
        """(N,) time that passed in the last step, in mean solo latencies, for a discount by time."""
        worlds = self.env.worlds
        return worlds.out.dt / worlds.sim.tables.device["unit_ms"][0]

    def action_masks(self) -> np.ndarray:
        """(N, A) bool: valid actions now; a view."""
        return self.env.worlds.masks

    def reset(self) -> np.ndarray:
        """Begin an episode in every world; seeds are those of ``seed()``, else each world goes on to its next."""
        seeds = list(self._seeds) if any(s is not None for s in self._seeds) else None
        options = self._options[0] if self._options and self._options[0] else None
        self.env.reset(seed=seeds, options=options)
        self._reset_seeds()
        self._reset_options()
        if self.began is not None:
            self.began(np.ones(self.num_envs, bool))
        if self.observed is not None:
            self.observed()
        return self.env.worlds.obs

    def refresh(self) -> None:
        """Observe worlds that somebody else has played."""
        self.env.worlds.refresh()
        if self.observed is not None:
            self.observed()

    def step_async(self, actions: np.ndarray) -> None:
        """Note the actions (N,)."""
        self._actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:  # type: ignore[override]
        """Observations (N, O), rewards (N,), dones (N,), infos."""
        worlds = self.env.worlds
        worlds.step(self._actions)
        out = worlds.out
        dones = self._dones[0]
        self._dones.reverse()
        np.copyto(dones, out.done)
        for i in self._ended:
            self._infos[i] = self._empty[i]
        self._ended = np.flatnonzero(dones)
        for i in self._ended:
            self._infos[i] = {
                "terminal_observation": out.final_obs[i].copy(),
                "TimeLimit.truncated": False,
                "episode": {
                    "r": float(out.final_ret[i]),
                    "l": int(out.final_steps[i]),
                    "t": float(out.final_ms[i]),
                },
                "outcomes": out.final_count[i].copy(),
            }
        if self.began is not None and len(self._ended):
            self.began(dones)
        if self.observed is not None:
            self.observed()
        return worlds.obs, out.reward, dones, self._infos

    def close(self) -> None:
        """Close the environment below."""
        self.env.close()

    def has_attr(self, attr_name: str) -> bool:
        """Whether ``get_attr`` finds it; does not build the list, as sb3-contrib asks before every step."""
        return hasattr(self, attr_name) or hasattr(self.env, attr_name)

    def get_attr(self, attr_name: str, indices: None | int | Iterable[int] = None) -> list[Any]:
        """The attribute of the batch, once for each world asked for."""
        value = getattr(self.env, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: None | int | Iterable[int] = None) -> None:
        """Set an attribute of the batch; it has one for all worlds."""
        setattr(self.env, attr_name, value)

    def env_method(  # type: ignore[override]
        self, method_name: str, *method_args: Any, indices: None | int | Iterable[int] = None, **method_kwargs: Any
    ) -> Any:
        """Call a method of the batch; "action_masks" gives the whole array (N, A), one row a world."""
        if method_name == "action_masks":
            return self.masks if indices is None else self.masks[list(self._get_indices(indices))]
        value = getattr(self.env, method_name)(*method_args, **method_kwargs)
        return [value for _ in self._get_indices(indices)]

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper], indices: None | int | Iterable[int] = None
    ) -> list[bool]:
        """No wrapper is around a single world."""
        return [False for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[np.ndarray | None]:
        """Pictures of the worlds."""
        return self.env.render() or []
