"""Rewards relative to a reference policy: what it does with the same requests is taken for granted.

Most of what a scheduler's rewards vary by is the luck of arrivals, which no decision changes. Each world's episode is first
played to its end by the reference in a twin world with the same seed, hence the same arrivals, device and noise; a request
that it violates costs the learner nothing, one that it meets and the learner violates costs its weight, one that only the
learner meets earns it. That is a control variate (it does not depend on the learner's actions), and the return is the
difference from the reference.
"""

from __future__ import annotations

import numpy as np

from agents.evaluation.rollout import finish
from agents.policies.base import Policy
from envs.scheduling.state import MET
from envs.simulation.worlds import Worlds


class Baseline:
    """The reference's outcomes for the episodes of a batch.

    Args:
        worlds: worlds of the learner, with autoreset.
        reference: who plays the twins, ready for ``worlds.n`` schedulers.
    """

    def __init__(self, worlds: Worlds, reference: Policy) -> None:
        self.worlds = worlds
        self.reference = reference
        self.twins = Worlds(worlds.config, worlds.n, autoreset=False, profile=worlds.profile)
        self.twins.sim.world.episode["done"] = 1

    def began(self, which: np.ndarray) -> None:
        """Play the episodes that the worlds where ``which`` (N,) is set have just begun, and note the outcomes."""
        twins, policy = self.twins, self.reference
        twins.reset(self.worlds.seeds, which)
        policy.forget(which)
        sim = twins.sim
        # Worlds that did not begin are done since their last episode: they are passed over.
        finish(policy, sim.arrays, policy.memory, 0, twins.n)
        self.worlds.sim.world.request["baseline"][which] = sim.world.request["outcome"][which] != MET
