"""What the live engine costs beside the device: measured while it serves, and put into the simulator's truth.

Between an event and its effect lie Python, a thread's wake-up and the event loop's timers; and the engine's own thread takes
a share of a core from the workers. None of that is in a profile, which is measured without an engine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from envs.profiles.delays import Delays, mean, measured_delays
from envs.profiles.profile import Profile
from envs.profiles.refit import joined, with_noise, with_slowdowns
from serving.engine.request import BatchRecord, Observer, RequestResult
from serving.observers.recorder import campaign_of, row_of
from traces.machine import MachineInfo
from traces.measurements import Measurements

PROBE_MS = (2.0, 9.0)  # spans of the probing timer


class OverheadMeter(Observer):
    """Observes one run of an engine: batches, when their requests began and ended, timers, and the loop's use of a core."""

    def __init__(self) -> None:
        self.batches: list[BatchRecord] = []
        self.late_ms: list[float] = []
        self._rng = np.random.default_rng(0)
        self._probing = False
        self._began = self._ended = (0.0, 0.0)

    @property
    def host_share(self) -> float:
        """Share of a core that the engine's thread used."""
        return (self._ended[1] - self._began[1]) / max(self._ended[0] - self._began[0], 1e-9)

    def request_ended(self, result: RequestResult) -> None:
        """Note the time; the first request begins the probing."""
        self._ended = (time.perf_counter(), time.thread_time())
        if not self._probing:
            self._probing = True
            self._began = self._ended
            self._probe()

    def batch_ended(self, batch: BatchRecord) -> None:
        """Keep its phases."""
        if batch.error is None:
            self.batches.append(batch)

    def _probe(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + self._rng.uniform(*PROBE_MS) / 1e3
        loop.call_at(due, self._on_time, due)

    def _on_time(self, due: float) -> None:
        self.late_ms.append(1e3 * (asyncio.get_running_loop().time() - due))
        self._probe()

    def log(self, machine: MachineInfo) -> Measurements:
        """The batches as a campaign of kind "live"."""
        return campaign_of(machine, [], [row_of(batch) for batch in self.batches])


@dataclass(frozen=True)
class Overhead:
    """Means over runs.

    Attributes:
        delays: between what the device and what the scheduler sees.
        timer_ms: by how much a timer of the event loop is late, the largest hundredth cut.
        late_ms: (n,) by how much it was each time, the largest thousandth cut.
        host_share: share of a core that the engine's thread uses.
        log: the batches.
    """

    delays: Delays
    timer_ms: float
    late_ms: np.ndarray
    host_share: float
    log: Measurements

    @property
    def figures(self) -> dict[str, Any]:
        """What was measured, by name."""
        return asdict(self.delays) | {"timer_ms": self.timer_ms, "host_share": self.host_share}

    def put_into(self, profile: Profile) -> Profile:
        """The profile with the engine's delays, and with slowdowns, noise and drift of batches beside a running engine.

        It is for a truth whose speed is given (envs.profiles.refit.with_measured_slowdown).
        """
        delayed = self.delays.put_into(profile, self.timer_ms)
        return with_noise(with_slowdowns(delayed, self.log), self.log, by_core=True)


def measure_overhead(meters: Sequence[OverheadMeter], machine: MachineInfo) -> Overhead:
    """Overheads over one or more runs on a machine, whose models are in the profile's order."""
    log = joined([meter.log(machine) for meter in meters])
    late_ms = np.array([late for meter in meters for late in meter.late_ms])
    return Overhead(
        measured_delays(log) or Delays(0.0, (0.0,) * 3, (0.0,) * 3),
        mean(late_ms),
        np.minimum(late_ms, np.quantile(late_ms, 0.999)) if len(late_ms) else np.zeros(1),
        float(np.mean([meter.host_share for meter in meters])),
        log,
    )
