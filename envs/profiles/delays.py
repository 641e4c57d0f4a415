"""What the engine of a live log costs beside the device, read from the log and put into the simulator's truth.

Between an event and its effect lie the policy, the bookkeeping, a thread's wake-up and the event loop's timers. None of that is
in a profile that was measured without an engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from envs.profiles.profile import Profile
from envs.profiles.segments import cores_of
from traces.measurements import SCHEDULED, Measurements

# Event loops wait for whole milliseconds, rounded up: a timer rings late by half of one, and then the thread has to wake up.
TIMER_MS = 0.5


@dataclass(frozen=True)
class Delays:
    """Means over a log, in ms, outliers cut at the 99th percentile.

    Hand-over and completion are (3,): while no core is shared, while another core is, and while the batch's own core is.

    Attributes:
        decision_ms: from the state's present to the submission of a batch: the policy and the bookkeeping.
        handover_ms: from there to the start of its copy: the worker thread wakes up.
        completion_ms: from the end of its copy back to when the scheduler sees it: the engine's thread wakes up.
    """

    decision_ms: float
    handover_ms: tuple[float, float, float]
    completion_ms: tuple[float, float, float]

    def put_into(self, profile: Profile, timer_ms: float | None = None) -> Profile:
        """The profile with these delays in its truth.

        Args:
            profile: to start from. timer_ms: by how much a timer rings late; None: as event loops do, see `TIMER_MS`.
        """
        return replace(
            profile,
            dispatch_ms=self.decision_ms + self.handover_ms[0],
            completion_ms=self.completion_ms[0],
            timer_ms=TIMER_MS + self.completion_ms[0] if timer_ms is None else timer_ms,
            shared_core_wait_ms=(_beyond_first(self.handover_ms), _beyond_first(self.completion_ms)),
        )


def measured_delays(log: Measurements) -> Delays | None:
    """Delays of the live batches of a log; None where no scheduler left its times in it."""
    frame = log.batches
    if SCHEDULED[0] not in frame:
        return None
    frame = frame[frame[list(SCHEDULED)].notna().all(axis=1)]
    if not len(frame):
        return None
    crowd = np.zeros((len(frame), 2), np.int64)
    for rows in frame.groupby("run", sort=False).indices.values():
        run = frame.iloc[rows]
        stream, start, end = (run[name].to_numpy() for name in ("stream", "dispatch_ms", "d2h_end_ms"))
        crowd[rows] = crowds(stream, start, end, cores_of(log.machine))
    decided, seen = (frame[name].to_numpy() for name in SCHEDULED)
    handover = (frame["h2d_start_ms"] - frame["dispatch_ms"]).to_numpy()
    completion = seen - frame["d2h_end_ms"].to_numpy()
    return Delays(
        mean(frame["dispatch_ms"].to_numpy() - decided),
        _means([handover[crowd[:, 0] == c] for c in range(3)]),
        _means([completion[crowd[:, 1] == c] for c in range(3)]),
    )


def crowds(stream: np.ndarray, start_ms: np.ndarray, end_ms: np.ndarray, cores: int) -> np.ndarray:
    """How crowded the cores are as each batch is dispatched and as it ends.

    Args:
        stream, start_ms, end_ms: (n,) of the batches of one run.
        cores: stream k runs on core k % cores; 0: each has one of its own.

    Returns:
        (n, 2): 0, no core is shared; 1, another core is; 2, its own is.
    """
    out = np.zeros((len(stream), 2), np.int64)
    if cores == 0 or not len(stream):
        return out
    core = stream.astype(np.int64) % cores
    starts, ends = ([np.sort(times[core == c]) for c in range(cores)] for times in (start_ms, end_ms))
    for event, now in enumerate((start_ms, end_ms)):
        on = np.array([np.searchsorted(s, now, "right") - np.searchsorted(e, now) for s, e in zip(starts, ends)])
        others = on[core, np.arange(len(core))] - 1
        on[core, np.arange(len(core))] = others
        out[:, event] = np.where(others > 0, 2, on.max(axis=0) > 1)
    return out


def mean(values: Sequence[float] | np.ndarray) -> float:
    """Mean with the largest hundredth cut: one pause of the machine must not count as a delay of every batch."""
    if not len(values):
        return 0.0
    array = np.maximum(np.asarray(values), 0.0)
    return float(np.minimum(array, np.quantile(array, 0.99)).mean())


def _beyond_first(means: tuple[float, float, float]) -> tuple[float, float]:
    return max(means[1] - means[0], 0.0), max(means[2] - means[0], 0.0)


def _means(groups: Sequence[np.ndarray]) -> tuple[float, float, float]:
    """Mean of each group; one that was not met is taken to be like the one before."""
    means: list[float] = []
    for group in groups:
        means.append(mean(group) if len(group) or not means else means[-1])
    return means[0], means[1], means[2]
