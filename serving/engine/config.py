"""Settings of the engine."""

from __future__ import annotations

from dataclasses import dataclass

from envs.scheduling.state import GRACE_MS
from traces.workload import HIGH_WEIGHT


@dataclass
class EngineConfig:
    """Settings of the engine.

    Attributes:
        queue_places: requests that each queue (one per priority and model) holds; one more is refused.
        grace_ms: a queued request that is this late is dropped whatever the policy says.
        high_weight: what a high-priority request counts, a low-priority one being 1, for policies that ask: strait and ppo.
        decision_budget_ms: time that a decision may take, see `serving.engine.guard`.
    """

    queue_places: int = 128
    grace_ms: float = GRACE_MS
    high_weight: float = HIGH_WEIGHT
    decision_budget_ms: float = 10.0
