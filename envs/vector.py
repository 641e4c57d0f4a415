"""The batched environment for Gymnasium: N worlds, one compiled call a step."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from envs.scheduling.observation import LIMIT
from envs.simulation.config import EnvConfig, make_config
from envs.simulation.options import with_options
from envs.simulation.worlds import Worlds, world_seed
from traces.errors import InputError


class DualPriorityVectorEnv(VectorEnv):
    """N servers as one vector environment; see ``envs.dual_priority.DualPriorityEnv`` for what the numbers mean.

    When a world's episode ends, the next one begins as ``autoreset_mode`` says. Gymnasium's vector wrappers work with all modes
    that they know of.

    Args:
        num_envs: number of worlds N.
        config: settings; None: the defaults.
        render_mode: None or "rgb_array" (``render`` then draws the first world).
        copy: whether arrays that are returned are the caller's own. Without, observations and masks are views that are valid
            until the step after next, and all else until the next step.
        threads: threads over which the worlds are spread.
        autoreset_mode: NEXT_STEP: in the next step, whose action is then ignored; SAME_STEP: in the same step, with what the
            old one ended with in the info; DISABLED: when ``reset(options={"reset_mask": ...})`` says so.
        **settings: fields of EnvConfig, in place of those of ``config``.

    Info keys: see ``step``.
    """

    metadata: dict[str, Any] = {
        "render_modes": ["rgb_array"],
        "render_fps": 10,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        config: EnvConfig | None = None,
        render_mode: str | None = None,
        copy: bool = True,
        threads: int = 1,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        **settings: Any,
    ) -> None:
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(f"render_mode {render_mode!r}; expected one of {self.metadata['render_modes']}")
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = self.metadata | {"autoreset_mode": self.autoreset_mode}
        self.config = make_config(config, settings)
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.copy = copy
        self._threads = threads
        self.worlds = Worlds(self.config, num_envs, self.autoreset_mode is AutoresetMode.SAME_STEP, threads)
        self.single_observation_space = spaces.Box(-LIMIT, LIMIT, (self.worlds.sim.obs_size,), np.float32)
        self.single_action_space = spaces.Discrete(self.worlds.sim.n_actions)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._begun = False

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode in every world.

        Args:
            seed: world i gets seed + i, or seed[i]. None goes on: each world's next episode follows from its last.
            options: "reset_mask" (N,) bool: only these worlds; "load", "workload", "profile": as in
                ``DualPriorityEnv.reset``, for all worlds.

        Raises:
            InputError: an option is unknown or malformed, or "reset_mask" comes with another.
            gymnasium.error.ResetNeeded: a mask leaves out worlds that were never begun.
        """
        options = dict(options or {})
        which = options.pop("reset_mask", None)
        if which is not None:
            self._check_mask(np.asarray(which), options)
        seeds = self._seeds(seed)
        if options:
            self.worlds = with_options(self.worlds, options, self._threads)
        self.worlds.reset(seeds, which)
        self._begun = True
        return self._own(self.worlds.obs), self._infos()

    def _check_mask(self, which: np.ndarray, options: dict[str, Any]) -> None:
        if which.shape != (self.num_envs,) or which.dtype != bool:
            raise InputError(f"reset_mask is {which.dtype}{list(which.shape)}; expected bool{[self.num_envs]}")
        if options:
            raise InputError(
                f"reset_mask does not go with {min(options)!r}, which holds for all worlds: reset them all"
            )
        if not self._begun and not which.all():
            raise gym.error.ResetNeeded("the first reset begins every world: leave reset_mask out")

    def _seeds(self, seed: int | list[int | None] | None) -> np.ndarray:
        if seed is None and self._begun:
            return self.worlds.next_seeds()
        if seed is None or isinstance(seed, int | np.integer):
            super().reset(seed=None if seed is None else int(seed))
            first = int(self.np_random.integers(2**62)) if seed is None else int(seed)
            return np.array([world_seed(first + i) for i in range(self.num_envs)], np.uint64)
        if len(seed) != self.num_envs:
            raise ValueError(f"{len(seed)} seeds for {self.num_envs} worlds")
        following = self._seeds(None)
        drawn = [following[i] if s is None else world_seed(int(s)) for i, s in enumerate(seed)]
        return np.array(drawn, np.uint64)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One decision in every world: ``actions`` (N,).

        Returns:
            Observations (N, O), rewards (N,), terminations (N,), truncations (N,) (never), infos. Info keys are those of
            ``DualPriorityEnv``, arrays with a row for each world. With SAME_STEP, when any episode ended, also
            "final_obs" (N, O) and "final_info" ("episode": return "r", decisions "l", length "t" in ms;
            "outcomes" (N, 2, 6) requests by priority and outcome), where "_final_obs" and "_final_info" (N,) are set.

        Raises:
            gymnasium.error.ResetNeeded: no episode was begun; with DISABLED, also of a world whose episode ended.
        """
        worlds = self.worlds
        if not self._begun or (self.autoreset_mode is AutoresetMode.DISABLED and worlds.out.done.any()):
            ended = f" in worlds {np.flatnonzero(worlds.out.done).tolist()}" if self._begun else ""
            raise gym.error.ResetNeeded(f"call reset{ended} before step")
        (worlds.begin_ended if self.autoreset_mode is AutoresetMode.NEXT_STEP else worlds.step)(actions)
        out = worlds.out
        infos = self._infos()
        if self.autoreset_mode is AutoresetMode.SAME_STEP and out.done.any():
            done = out.done.copy()
            episode = {"r": out.final_ret.copy(), "l": out.final_steps.copy(), "t": out.final_ms.copy()}
            infos["final_obs"] = self._own(out.final_obs)
            infos["final_info"] = {
                "episode": episode,
                "_episode": done,
                "outcomes": out.final_count.copy(),
                "_outcomes": done,
            }
            infos["_final_obs"] = infos["_final_info"] = done
        truncated = np.zeros(self.num_envs, bool)
        return self._own(worlds.obs), self._own(out.reward), self._own(out.done), truncated, infos

    def _infos(self) -> dict[str, Any]:
        worlds = self.worlds
        infos: dict[str, Any] = {
            "action_mask": self._own(worlds.masks),
            "dt_ms": self._own(worlds.out.dt),
            "time_ms": self._own(worlds.sim.state.scheduler["now"]),
            "invalid_action": self._own(worlds.out.invalid),
            "outcomes": self._own(worlds.sim.state.count),
            "seed": self._own(worlds.seeds),
        }
        # Gymnasium marks which worlds have a key: here always all.
        return infos | {f"_{key}": np.ones(self.num_envs, bool) for key in infos}

    def _own(self, array: np.ndarray) -> np.ndarray:
        return array.copy() if self.copy else array

    def action_masks(self) -> np.ndarray:
        """(N, A) bool: valid actions now."""
        return self._own(self.worlds.masks)

    def state_dict(self) -> dict[str, np.ndarray]:
        """The whole batch, mid-episode, as arrays; ``np.savez(path, **env.state_dict())`` keeps it without pickles."""
        return self.worlds.state_dict()

    def load_state_dict(self, arrays: dict[str, np.ndarray]) -> None:
        """Go on from ``state_dict``; raises InputError for another batch."""
        self.worlds.load_state_dict(arrays)
        self._begun = True

    def render(self) -> tuple[np.ndarray, ...] | None:
        """With render_mode "rgb_array": a picture (height, width, 3) uint8 of each world."""
        if self.render_mode != "rgb_array":
            return None
        from envs.drawing.frame import draw

        return tuple(draw(self.worlds.sim.state, self.worlds.profile.models, e) for e in range(self.num_envs))

    def close_extras(self, **kwargs: Any) -> None:
        """Stop the threads."""
        self.worlds.close()
