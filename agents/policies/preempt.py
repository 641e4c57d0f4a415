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
    def preemption(self) -> tuple[float, ...]:
        """What the simulated device must do: a record of ``envs.simulation.records.World.preemption``."""
        return 1.0, self.latency_ms, self.overhead, self.resume_ms


@dataclass(frozen=True)
class InstantPreemptParams(PreemptParams):
    """Parameters, see ``PreemptParams``; suspending and resuming cost nothing."""

    latency_ms: float = 0.0
    overhead: float = 0.0
    resume_ms: float = 0.0


@njit
def choose(state, tables, memory, env, params):
    """High priority first; low priority whenever it may hold another stream, for it gives way by itself."""
    if state.scheduler[env].n_free == 0:
        return defer_action(state, tables), np.inf
    for priority in range(2):
        model, _ = earliest_deadline_queue(state, env, priority)
        if model < 0 or (priority == 1 and held_by_low(state, env) >= params[1]):
            continue
        size = largest_fit(state, tables, env, priority, model, params[0])
        if size >= 0:
            return action_of(tables, state.queue.shape[2], priority, model, size), np.inf
    return defer_action(state, tables), np.inf


register(PolicyKind("preempt", choose, PreemptParams, "after REEF, OSDI 2022, and XSched, OSDI 2025"))
register(PolicyKind("preempt-instant", choose, InstantPreemptParams, "REEF and XSched without their cost"))
