"""A learner that starts from Strait: what Strait would choose is marked in the observation, and scored higher from the start.

The network's output is a correction of that score, so an untrained network decides as Strait does, and training changes a
decision only where the correction outgrows ``CandidateNet.strait_bonus`` (residual policy learning, Silver et al., 2018).
"""

from __future__ import annotations

import numpy as np

from agents.learned.forward import CHOSEN
from agents.policies.registry import make_policy
from envs.scheduling.observation import N_CANDIDATE, VALID
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

    def observed(self) -> None:
        """Mark the present observations; a world where none is marked is one where Strait defers."""
        worlds = self.worlds
        actions = self.strait.actions(worlds.sim.state, worlds.sim.tables)
        rows = np.flatnonzero(actions < worlds.sim.n_actions - 1)
        worlds.obs[rows, actions[rows] * N_CANDIDATE + VALID] = CHOSEN
