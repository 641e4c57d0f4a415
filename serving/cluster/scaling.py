"""How many replicas there should be, by the violations that quotes foretell rather than by the lengths of queues."""

from __future__ import annotations

import math
from typing import NamedTuple

FEW = 20  # calls; with fewer, a share of violations says little


class Scaling(NamedTuple):
    """How the number of replicas may change.

    Attributes:
        least: replicas that are always kept.
        most: replicas at most.
        target: share of foretold violations that is acceptable.
        calm_s: one replica is given up after so long without need.
    """

    least: int
    most: int
    target: float = 0.02
    calm_s: float = 60.0


def replicas_wanted(scaling: Scaling, replicas: int, violations: float, calm_s: float) -> int:
    """How many replicas would keep foretold violations at the target.

    Calls that will be late are what capacity lacks: where a share v is late, 1 - v of the load is served in time, so that
    R / (1 - v) replicas serve all of it; at most twice as many at once, for quotes of an overload only say that it is one.
    What is too much cannot be told from calls that are all in time, so replicas are given up one by one.

    Args:
        scaling: limits and target.
        replicas: as there are.
        violations: share of calls that are foretold to be late.
        calm_s: for how long it has been at most half of the target.
    """
    wanted = replicas
    if violations > scaling.target:
        wanted = math.ceil(replicas * min((1.0 - scaling.target) / (1.0 - min(violations, 0.5)), 2.0))
    elif calm_s >= scaling.calm_s:
        wanted = replicas - 1
    return min(max(wanted, scaling.least), scaling.most)


class Scaler:
    """Collects the quotes of a door's calls, and says how many replicas there should be.

    Args:
        scaling: limits and target.
        now_s: time of the clock that `wanted` is given.
    """

    def __init__(self, scaling: Scaling, now_s: float) -> None:
        self.scaling = scaling
        self._calls, self._late = 0, 0.0
        self._calm_since_s = now_s

    def add(self, probability: float) -> None:
        """A call came that would be in time with this probability."""
        self._calls += 1
        self._late += 1.0 - probability

    def wanted(self, now_s: float, replicas: int, up: int) -> int:
        """How many replicas there should be, by the calls since the last time.

        Args:
            now_s: time, in s.
            replicas: as many as are kept.
            up: of them, how many take requests; while some do not yet, nothing changes.
        """
        violations = self._late / max(self._calls, FEW)
        self._calls, self._late = 0, 0.0
        if violations > self.scaling.target / 2 or up < replicas:
            self._calm_since_s = now_s
        if up < replicas:
            return replicas
        wanted = replicas_wanted(self.scaling, replicas, violations, now_s - self._calm_since_s)
        if wanted != replicas:
            self._calm_since_s = now_s
        return wanted
