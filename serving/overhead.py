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
from envs.refit import joined, with_noise, with_slowdowns
from envs.segments import cores_of
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

    Hand-over and completion are (3,): while no core is shared, while another core is, and while the batch's own core is.

    Attributes:
        decision_ms: from the state's present to the submission of a batch: the policy and the bookkeeping in Python.
        handover_ms: from there to the start of its copy: the worker thread wakes up.
        completion_ms: from the end of its copy back to when the scheduler sees it: the engine's thread wakes up.
        timer_ms: by how much a timer of the event loop rings late.
        late_ms: (n,) by how much it did each time, the largest thousandth cut.
        host_share: share of a core that the engine's thread uses.
        log: the batches.
    """

    decision_ms: float
    handover_ms: tuple[float, float, float]
    completion_ms: tuple[float, float, float]
    timer_ms: float
    late_ms: np.ndarray
    host_share: float
    log: Measurements

    def delays(self, profile: Profile) -> Profile:
        """The profile with the engine's delays in its truth."""
        return replace(
            profile,
            dispatch_ms=self.decision_ms + self.handover_ms[0],
            completion_ms=self.completion_ms[0],
            timer_ms=self.timer_ms,
            crowded_ms=(_beyond_first(self.handover_ms), _beyond_first(self.completion_ms)),
        )

    def slowdowns(self, profile: Profile) -> Profile:
        """The profile with the slowdowns side by side that batches have beside a running engine."""
        return with_slowdowns(profile, self.log)

    def all_of_it(self, profile: Profile) -> Profile:
        """The profile with all of these, for a truth whose speed is given (envs.refit.at_speed)."""
        return self.noise(self.slowdowns(self.delays(profile)), by_core=True)

    def noise(self, profile: Profile, by_core: bool = False) -> Profile:
        """The profile with speed, noise and drift of batches beside a running engine; ``by_core`` as of `with_noise`."""
        return with_noise(profile, self.log, by_core)


def measure_overhead(meters: Sequence[OverheadMeter], machine: MachineInfo) -> Overhead:
    """Overheads over one or more runs on a machine, whose models are in the profile's order."""
    decision: list[float] = []
    handover: list[list[float]] = [[], [], []]
    completion: list[list[float]] = [[], [], []]
    cores = cores_of(machine)
    for meter in meters:
        batches = [batch for batch in meter.batches if batch.batch_id in meter.seen]
        for batch, (crowd, crowd_at_end) in zip(batches, crowds(batches, cores), strict=True):
            start, finish = meter.seen[batch.batch_id]
            decision.append(batch.dispatch_ms - start)
            handover[crowd].append(batch.h2d_start_ms - batch.dispatch_ms)
            completion[crowd_at_end].append(finish - batch.d2h_end_ms)
    late_ms = np.array([late for meter in meters for late in meter.late_ms])
    return Overhead(
        _mean(decision),
        _means(handover),
        _means(completion),
        _mean(late_ms),
        np.minimum(late_ms, np.quantile(late_ms, 0.999)) if len(late_ms) else np.zeros(1),
        float(np.mean([meter.host_share for meter in meters])),
        joined([meter.log(machine) for meter in meters]),
    )


def crowds(batches: Sequence[BatchRecord], cores: int) -> np.ndarray:
    """How crowded the cores are as each batch is dispatched and as it ends.

    Args:
        batches: of one run. cores: stream k runs on core k % cores; 0: each has one of its own.

    Returns:
        (n, 2): 0, no core is shared; 1, another core is; 2, its own is.
    """
    out = np.zeros((len(batches), 2), np.int64)
    if cores == 0:
        return out
    start = np.array([batch.dispatch_ms for batch in batches])
    end = np.array([batch.d2h_end_ms for batch in batches])
    core = np.array([batch.stream % cores for batch in batches])
    for i in range(len(batches)):
        for event, now in enumerate((start[i], end[i])):
            there = (start <= now) & (end >= now)
            there[i] = False
            on = np.bincount(core[there], minlength=cores)
            out[i, event] = 2 if on[core[i]] else int(on.max() > 1)
    return out


def _beyond_first(means: tuple[float, float, float]) -> tuple[float, float]:
    return max(means[1] - means[0], 0.0), max(means[2] - means[0], 0.0)


def _means(groups: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Mean of each group; one that was not met is taken to be like the one before."""
    means: list[float] = []
    for group in groups:
        means.append(_mean(group) if len(group) or not means else means[-1])
    return means[0], means[1], means[2]


def _mean(values: Sequence[float] | np.ndarray) -> float:
    """Mean with the largest hundredth cut: one pause of the machine must not count as an overhead of every batch."""
    if not len(values):
        return 0.0
    array = np.maximum(np.asarray(values), 0.0)
    return float(np.minimum(array, np.quantile(array, 0.99)).mean())
