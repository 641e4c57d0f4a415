"""Which policy to serve with: candidates are compared with Strait in simulation, on the models that are served.

What is best depends on the device and the load, so it is found out on the profile of the models as they were measured, and on
the recorded arrivals where there are some. A candidate is taken only if it is better than Strait clear of zero: the upper end
of the interval of its paired difference is below 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agents.evaluation.paired import PairedEvaluation
from agents.learned.names import resolve
from envs.profiles.profile import Profile
from envs.simulation.config import EnvConfig
from traces.workload import HIGH_WEIGHT, Workload

REFERENCE = "strait"
LOADS = (0.6, 0.8, 1.0, 1.2)
WORKLOADS = 12  # at each load
DURATION = 150.0  # of each, mean solo latencies
Z95 = 1.96  # half width of a 95 % interval, in standard errors


@dataclass(frozen=True)
class Choice:
    """What a comparison found.

    Attributes:
        policy: the one to serve with.
        differences: by candidate, the share of violated weight less Strait's and half of its 95 % interval, percentage points.
    """

    policy: str
    differences: dict[str, tuple[float, float]]

    def describe(self) -> str:
        """One line for the log."""
        found = ", ".join(f"{name} {mean:+.2f} +- {half:.2f}" for name, (mean, half) in self.differences.items())
        return f"{self.policy} (violated weight less {REFERENCE}'s, percentage points: {found})"


def choose_policy(
    profile: Profile,
    candidates: Sequence[str],
    streams: int,
    high_weight: float = HIGH_WEIGHT,
    tuned_for: str = "",
    workload: Workload | None = None,
    seed: int = 0,
) -> Choice:
    """Compare candidates with Strait, and choose.

    Args:
        profile: of the models that are served, as measured.
        candidates: names of policies, or files of trained ones.
        streams: batches that may be in flight side by side.
        high_weight: what a high-priority request counts, a low-priority one being 1.
        tuned_for: profile whose tuned parameters heuristics take.
        workload: arrivals as they were recorded, whose windows are compared on at the rate that they have; None: made ones at
            several loads.
        seed: of arrivals and noise; the same seed gives the same choice.

    Raises:
        InputError: there is no such policy, or it does not fit the models.
    """
    unit_ms = float(profile.tables().device["unit_ms"][0])
    duration_ms = DURATION * unit_ms
    config = EnvConfig(
        streams=streams,
        load=None if workload is not None else (1.0, 1.0),
        high_weight=(high_weight, high_weight),
        burst_ms=(5.0 * unit_ms, 40.0 * unit_ms),
        end_ms=duration_ms,
    )
    comparison = PairedEvaluation(
        config,
        profile,
        resolve(REFERENCE, WORKLOADS, profile=tuned_for)[0],
        (None,) if workload is not None else LOADS,
        WORKLOADS if workload is None else 2 * WORKLOADS,
        duration_ms,
        seed=seed + (1 << 42),
        workload=workload,
    )
    differences = {}
    for name in candidates:
        if name == REFERENCE:
            continue
        policy = resolve(name, comparison.n, profile=tuned_for)[0]
        paired = comparison.paired(comparison.score(policy)).ravel()
        error = float(paired.std(ddof=1)) / np.sqrt(len(paired))
        differences[name] = (100 * float(paired.mean()), 100 * Z95 * error)
    better = {name: mean for name, (mean, half) in differences.items() if mean + half < 0.0}
    best = min(better, key=lambda name: better[name]) if better else REFERENCE
    return Choice(best, differences)
