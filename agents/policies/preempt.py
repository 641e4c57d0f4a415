"""Software preemption: static priority, and the device suspends low-priority batches while a high-priority one executes.

After Han et al., "Microsecond-scale Preemption for Concurrent GPU-accelerated DNN Inferences" (REEF, OSDI 2022) and Shen
et al., "XSched: Preemptive Scheduling for Diverse XPUs" (OSDI 2025). ``preempt`` has a cost: a suspension takes effect
after about one command (XSched's level 2; its P99 latency is about one command's time, taken as 0.5 ms), and the
interception slows all work by 3.4 % (XSched's level-1 bound). ``preempt-instant`` is the ideal: no latency, no cost.
Dispatch is high priority first, earliest deadline first within a priority; a suspended batch keeps its stream.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agents.policies.base import PolicyKind, register
from agents.policies.common import defer_action, earliest_deadline_queue, held_by_low, largest_fit
from envs.scheduling.jit import njit
from envs.scheduling.operations import action_of


@dataclass(frozen=True)
class PreemptParams:
    """Parameters.

    Attributes:
        max_batch: largest batch in requests.
        low_streams: streams that low priority may hold at once, suspended or not.
        latency_ms: time from the start of a high-priority execution until low priority stands still.
        overhead: share by which intercepting commands lengthens every execution.
        resume_ms: work that a resumed batch does again, in ms.
    """

    max_batch: int = 8
    low_streams: int = 2
    latency_ms: float = 0.5
    overhead: float = 0.034
    resume_ms: float = 0.1

    @property
    def device_mode(self) -> tuple[float, ...]:
        """What the simulated device must do: a row of ``envs.simulation.records.World.preempt``."""
        return 1.0, self.latency_ms, self.overhead, self.resume_ms


@dataclass(frozen=True)
class InstantPreemptParams(PreemptParams):
    """Parameters, see ``PreemptParams``; suspending and resuming cost nothing."""

    latency_ms: float = 0.0
    overhead: float = 0.0
    resume_ms: float = 0.0


@njit
def choose(st, tb, mem, e, p):
    """High priority first; low priority whenever it may hold another stream, for it gives way by itself."""
    if st.env[e].n_free == 0:
        return defer_action(st, tb), np.inf
    for pr in range(2):
        m, _ = earliest_deadline_queue(st, e, pr)
        if m < 0 or (pr == 1 and held_by_low(st, e) >= p[1]):
            continue
        b = largest_fit(st, tb, e, pr, m, p[0])
        if b >= 0:
            return action_of(tb, st.queue.shape[2], pr, m, b), np.inf
    return defer_action(st, tb), np.inf


register(PolicyKind("preempt", choose, PreemptParams, "after REEF, OSDI 2022, and XSched, OSDI 2025"))
register(PolicyKind("preempt-instant", choose, InstantPreemptParams, "REEF and XSched without their cost"))
