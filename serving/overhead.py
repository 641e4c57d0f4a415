"""What the live engine costs beside the device: measured while it serves, and put into the simulator's truth.

Between an event and its effect lie Python, a thread's wake-up and the event loop's timers; and the engine's own thread takes
a share of a core from the workers. None of that is in a profile, which is measured without an engine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from envs.profile import Profile
from envs.refit import joined, with_noise
from serving.record import campaign_of
from serving.request import BatchRecord, Observer, Outcome
from traces.machine import MachineInfo
from traces.measurements import PHASES, Measurements

PROBE_MS = (2.0, 9.0)  # times between rings of the probing timer


class OverheadMeter(Observer):
    """Observes one run of an engine: batches, when their requests began and ended, timers, and the loop's use of a core."""

    def __init__(self) -> None:
        self.batches: list[BatchRecord] = []
        self.seen: dict[int, tuple[float, float]] = {}  # batch: dispatch and finish as the scheduler saw them
        self.late_ms: list[float] = []
        self._rng = np.random.default_rng(0)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._began = self._ended = (0.0, 0.0)

    @property
    def host_share(self) -> float:
        """Share of a core that the engine's thread used."""
        return (self._ended[1] - self._began[1]) / max(self._ended[0] - self._began[0], 1e-9)

    def request_ended(self, outcome: Outcome) -> None:
        """Keep when its batch was dispatched and seen to end."""
        self._ended = (time.perf_counter(), time.thread_time())
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._began = self._ended
            self._probe()
        if outcome.answered:
            self.seen[outcome.batch_id] = (outcome.start_ms, outcome.finish_ms)

    def batch_ended(self, batch: BatchRecord) -> None:
        """Keep its phases."""
        if batch.error is None:
            self.batches.append(batch)

    def _probe(self) -> None:
        assert self._loop is not None
        due = self._loop.time() + self._rng.uniform(*PROBE_MS) / 1e3
        self._loop.call_at(due, self._rang, due)

    def _rang(self, due: float) -> None:
        assert self._loop is not None
        self.late_ms.append(1e3 * (self._loop.time() - due))
        self._probe()

    def log(self, machine: MachineInfo) -> Measurements:
        """The batches as a campaign of kind "live"."""
        rows = [
            (b.stream, b.priority, b.model, b.batch_size, *(getattr(b, phase) for phase in PHASES))
            for b in self.batches
        ]
        return campaign_of(machine, [], rows)


@dataclass(frozen=True)
class Overhead:
    """Means over a run, in ms, outliers cut at the 99th percentile.

    Attributes:
        decision_ms: from the state's present to the submission of a batch: the policy and the bookkeeping in Python.
        handover_ms: from there to the start of its copy: the worker thread wakes up.
        completion_ms: from the end of its copy back to when the scheduler sees it: the engine's thread wakes up.
        timer_ms: by how much a timer of the event loop rings late.
        host_share: share of a core that the engine's thread uses.
        log: the batches.
    """

    decision_ms: float
    handover_ms: float
    completion_ms: float
    timer_ms: float
    host_share: float
    log: Measurements

    def delays(self, profile: Profile) -> Profile:
        """The profile with the engine's delays in its truth."""
        return replace(
            profile,
            dispatch_ms=self.decision_ms + self.handover_ms,
            completion_ms=self.completion_ms,
            timer_ms=self.timer_ms,
        )

    def noise(self, profile: Profile) -> Profile:
        """The profile with speed, noise and drift of batches beside a running engine."""
        return with_noise(profile, self.log)


def measure_overhead(meters: Sequence[OverheadMeter], machine: MachineInfo) -> Overhead:
    """Overheads over one or more runs on a machine, whose models are in the profile's order."""
    decision, handover, completion = [], [], []
    for meter in meters:
        for batch in meter.batches:
            if batch.batch_id in meter.seen:
                start, finish = meter.seen[batch.batch_id]
                decision.append(batch.dispatch_ms - start)
                handover.append(batch.h2d_start_ms - batch.dispatch_ms)
                completion.append(finish - batch.d2h_end_ms)
    return Overhead(
        _mean(decision),
        _mean(handover),
        _mean(completion),
        _mean([late for meter in meters for late in meter.late_ms]),
        float(np.mean([meter.host_share for meter in meters])),
        joined([meter.log(machine) for meter in meters]),
    )


def _mean(values: Sequence[float]) -> float:
    """Mean with the largest hundredth cut: one pause of the machine must not count as an overhead of every batch."""
    if not len(values):
        return 0.0
    array = np.maximum(np.asarray(values), 0.0)
    return float(np.minimum(array, np.quantile(array, 0.99)).mean())
