"""A learner that starts from Strait: what Strait would choose is marked in the observation, and scored higher from the start.

The network's output is a correction of that score, so an untrained network decides as Strait does, and training changes a
decision only where the correction outgrows ``CandidateNet.strait_bonus`` (residual policy learning, Silver et al., 2018).
"""

from __future__ import annotations

import numpy as np

from agents.learned.forward import CHOSEN
from agents.policies.registry import make_policy
from envs.scheduling.observation import N_CANDIDATE
from envs.simulation.worlds import Worlds


class StraitBonus:
    """Marks the choices of Strait in the observations of a batch.

    Args:
        worlds: worlds of the learner.
        strait: values of Strait's parameters.
    """

    def __init__(self, worlds: Worlds, strait: np.ndarray) -> None:
        self.worlds = worlds
        self.strait = make_policy("strait", worlds.n)
        self.strait.vector = np.asarray(strait, float)
        self._nobody = np.zeros(worlds.n, bool)
        self._actions = np.zeros(worlds.n, np.int64)
        self._wakes = np.zeros(worlds.n)

    def observed(self) -> None:
        """Mark the present observations; a world where none is marked is one where Strait defers."""
        worlds = self.worlds
        self.strait.memory[worlds.out.done] = 0.0
        self.strait.decide_all(worlds.sim.state, worlds.sim.tables, self._nobody, self._actions, self._wakes)
        rows = np.flatnonzero(self._actions < worlds.sim.n_actions - 1)
        worlds.obs[rows, self._actions[rows] * N_CANDIDATE] = CHOSEN
