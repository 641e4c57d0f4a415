"""A learner that starts from Strait: what Strait would choose is marked in the observation, and scored higher from the start.

The network's output is a correction of that score, so an untrained network decides as Strait does, and training changes a
decision only where the correction outgrows ``CandidateNet.prior`` (residual policy learning, Silver et al., 2018).
"""

from __future__ import annotations

import numpy as np

from agents.learned.forward import CHOSEN
from agents.policies.base import make_policy
from envs.scheduling.observation import N_CANDIDATE
from envs.simulation.worlds import Batch


class Prior:
    """Marks the choices of Strait in the observations of a batch.

    Args:
        batch: worlds of the learner.
        reference: values of Strait's parameters.
    """

    def __init__(self, batch: Batch, reference: np.ndarray) -> None:
        self.batch = batch
        self.strait = make_policy("strait", batch.n)
        self.strait.vector = np.asarray(reference, float)
        self._nobody = np.zeros(batch.n, bool)
        self._actions = np.zeros(batch.n, np.int64)
        self._wakes = np.zeros(batch.n)

    def observed(self) -> None:
        """Mark the present observations; a world where none is marked is one where Strait defers."""
        batch = self.batch
        self.strait.memory[batch.out.done] = 0.0
        self.strait.decide_all(batch.sim.state, batch.sim.tables, self._nobody, self._actions, self._wakes)
        rows = np.flatnonzero(self._actions < batch.sim.n_actions - 1)
        batch.obs[rows, self._actions[rows] * N_CANDIDATE] = CHOSEN
