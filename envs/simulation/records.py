"""What the simulated worlds are made of: the truth about a device, and the state of worlds beside the scheduler's own.

The scheduler's predictor (envs.scheduling.predictor) never reads any of this.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from envs.scheduling.state import records

IDLE, COPY_IN, EXECUTE, COPY_OUT, SUSPENDED = range(5)
HANDOVER, SEEN = range(2)  # what waits: a dispatched batch for its thread, the end of a batch for the scheduler
# Columns of Truth.device; the weight of low priority follows that of high.
(
    DISPATCH_MS, STRAGGLER_P, STRAGGLER_FACTOR, DRIFT_SPREAD, DRIFT_KNOT_MS, WEIGHT, WEIGHT_LOW, COMPLETION_MS, TIMER_MS,
    SHARED_TURN_MS, ANYWHERE,
) = range(11)  # fmt: skip

world_t = np.dtype(
    [
        ("seed", "u8"),  # of this episode
        ("episode", "i8"),  # episodes begun
        ("time", "f8"),  # time up to which progress is accounted
        ("h2d_free", "f8"),  # when the copy engine to the device is free
        ("d2h_free", "f8"),
        ("end", "f8"),  # no dispatch after this time: what is queued then is dropped
        ("next", "i4"),  # next arrival
        ("n", "i4"),  # arrivals in this episode
        ("done", "i4"),
        ("reward", "f8"),  # collected since the last decision
        ("ret", "f8"),  # undiscounted return of the episode
        ("steps", "i8"),  # decisions in this episode
        ("suspend", "f8"),  # when low priority will be suspended; inf when nothing is under way
        ("speed_at", "i8"),  # knot of the measured speed at which the episode began
        ("knot", "i8"),  # knots of the drift between which the present lies, -1 for none yet; and its values there
        ("drift_a", "f8"),
        ("drift_b", "f8"),
        ("suspending", "i4"),  # 1 while low priority may not execute
    ],
    align=True,
)
run_t = np.dtype(
    [
        ("until", "f8"),  # end of the copy under way
        ("work", "f8"),  # execution left, ms alone on the device
        ("noise", "f8"),  # factor on this batch's execution time
        ("slow", "f8"),  # slowdown in force
        ("h2d_start", "f8"),
        ("h2d_end", "f8"),
        ("exec_end", "f8"),
        ("phase", "i4"),
        ("mb", "i4"),  # model * B + size index
        ("priority", "i4"),
        ("core", "i4"),
        ("sharing", "i4"),  # batches that execute on this core
    ],
    align=True,
)
request_t = np.dtype(
    [
        ("arrival", "f8"),
        ("deadline", "f8"),  # absolute
        ("start", "f8"),  # dispatch; nan if never
        ("finish", "f8"),  # when it ended, however it ended
        ("model", "i4"),
        ("priority", "i4"),
        ("outcome", "i4"),
        ("batch", "i4"),  # -1 if never dispatched
        ("baseline", "i4"),  # 1 where its violation is taken for granted: the reward then counts it as nothing
    ],
    align=True,
)


class Truth(NamedTuple):
    """What the device really does, the same for all worlds of a batch or one per world (leading axis G is 1 or N).

    Attributes:
        solo: (G, M, B) mean execution time alone. h2d: (G, M, B) copy in. d2h: (G, M, B) copy back. In ms.
        load: (G, M) time to load a model's weights, ms.
        count: (G, K + 1) slowdown by number of batches that execute on one core (index 0 unused, index 1 is 1).
        pair: (G, M * B, M * B) log of the factor by which a co-runner on another core (column) slows a batch (row); a
            co-runner that has its core for a share of the time counts with that share.
        residual: (G, R) measured over fitted execution time; each batch draws one.
        device: (G, 11): dispatch cost ms, straggler probability, straggler factor, standard deviation of the drift (of the
            log of execution times), time between its knots in ms, weight of high priority in the reward, weight of low
            priority, time from a batch's end until the scheduler sees it in ms, by how much a timer rings late in ms, the
            length of a turn on a shared core in ms (0: it is shared evenly), and 1 where an episode begins anywhere in the
            measured speed (0: with its first knot).
        crowded: (G, 2, 2) mean of what the hand-over of a batch and the sight of its end (rows HANDOVER and SEEN) take longer
            while batches share another core, and while they share its own (columns), ms.
        speed: (1, K, S) log of the factor on execution times on each core at the knots of the drift, as it was measured; it
            takes the place of the drift that is drawn, and begins anew after its last. S = 0: there is none.
    """

    solo: np.ndarray
    h2d: np.ndarray
    d2h: np.ndarray
    load: np.ndarray
    count: np.ndarray  # type: ignore[assignment]  # hides tuple.count, which nobody calls
    pair: np.ndarray
    residual: np.ndarray
    device: np.ndarray
    crowded: np.ndarray
    speed: np.ndarray


class World(NamedTuple):
    """State of N simulated worlds beside their ``SchedState``.

    Attributes:
        env: (N,) records. run: (N, K) records, the true state of each stream. request: (N, R) records.
        options: (N, 4): drop scale (a queued request is dropped when even this many times its solo latency is too late; 0
            never drops), deferral timer ms, time after the last arrival until what is queued is dropped, ms,
            and how long after its deadline a queued request is dropped in any case, ms (inf: never).
        preempt: (N, 4) software preemption: 1 where low-priority batches are suspended while a high-priority one executes
            (else 0), ms until a suspension takes effect, share by which it lengthens every execution, and execution that
            a resumed batch does again, ms.
    """

    env: np.ndarray
    run: np.ndarray
    request: np.ndarray
    options: np.ndarray
    preempt: np.ndarray


def make_world(n: int, n_streams: int, n_requests: int) -> World:
    """Allocate n worlds with room for ``n_requests`` arrivals an episode each."""
    options = np.zeros((n, 4))
    options[:, 1] = 2.0
    options[:, 2] = 2000.0
    options[:, 3] = np.inf
    run = records((n, n_streams), run_t)
    return World(records((n,), world_t), run, records((n, n_requests), request_t), options, np.zeros((n, 4)))
