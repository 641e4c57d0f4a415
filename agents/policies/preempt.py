"""Software preemption: static priority, and the device suspends low-priority batches while a high-priority one executes.

After Han et al., "Microsecond-scale Preemption for Concurrent GPU-accelerated DNN Inferences" (REEF, OSDI 2022) and Shen
et al., "XSched: Preemptive Scheduling for Diverse XPUs" (OSDI 2025). ``preempt`` has a cost: a suspension takes effect
after about one command (XSched's level 2; its P99 latency is about one command's time, taken as 0.5 ms), and the
interception slows all work by 3.4 % (XSched's level-1 bound). ``preempt-instant`` is the ideal: no latency, no cost.
Dispatch is high priority first, earliest deadline first within a priority; a suspended batch keeps its stream.
"""

from __future__ import annotations

from dataclasses import dataclass

from agents.policies import priority_edf
from agents.policies.base import PolicyKind
from agents.policies.priority_edf import PriorityEdfParams


@dataclass(frozen=True)
class PreemptParams(PriorityEdfParams):
    """Parameters.

    Attributes, beside those of ``PriorityEdfParams``:
        low_streams: streams that low priority may hold at once, suspended or not.
        latency_ms: time from the start of a high-priority execution until low priority stands still.
        overhead: share by which intercepting commands lengthens every execution.
        resume_ms: work that a resumed batch does again, in ms.
    """

    low_streams: int = 2
    latency_ms: float = 0.5
    overhead: float = 0.034
    resume_ms: float = 0.1

    @property
    def preemption(self) -> tuple[float, ...]:
        """What the simulated device must do: a record of ``envs.simulation.records.World.preemption``."""
        return 1.0, self.latency_ms, self.overhead, self.resume_ms


@dataclass(frozen=True)
class InstantPreemptParams(PreemptParams):
    """Parameters, see ``PreemptParams``; suspending and resuming cost nothing."""

    latency_ms: float = 0.0
    overhead: float = 0.0
    resume_ms: float = 0.0


# What is dispatched is the same; the device makes the difference. The first three parameters must be those of priority-edf.
KIND = PolicyKind("preempt", priority_edf.choose, PreemptParams, "after REEF, OSDI 2022, and XSched, OSDI 2025")
INSTANT_KIND = PolicyKind(
    "preempt-instant", priority_edf.choose, InstantPreemptParams, "REEF and XSched without their cost"
)
