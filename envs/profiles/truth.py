"""The truth about a device: what the simulator does with batches. The scheduler's predictor never reads any of this."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

HANDOVER, SEEN = range(2)  # what waits: a dispatched batch for its thread, the end of a batch for the scheduler
OTHER_CORE, OWN_CORE = range(2)  # where it waits for other threads: another core is shared, or its own

truth_device_t = np.dtype(
    [
        ("device_slowdown", "f8"),  # stretch of the device's part of a batch for each ms of a co-runner's share
        ("host_slowdown", "f8"),  # stretch of the host's part for each co-runner
        ("dispatch_ms", "f8"),  # cost of a dispatch before its copy begins
        ("completion_ms", "f8"),  # from a batch's end until the scheduler sees it
        ("timer_ms", "f8"),  # by how much a timer rings late
        ("time_slice_ms", "f8"),  # of the batches on a shared core; 0: it is shared evenly
        ("drift_spread", "f8"),  # standard deviation of the log of execution times between the knots of the drift
        ("drift_knot_ms", "f8"),  # time between its knots
        ("drift_from_anywhere", "f8"),  # 1: an episode begins anywhere in the measured drift; 0: with its first knot
    ],
    align=True,
)


class Truth(NamedTuple):
    """What the device really does, the same for all worlds of a batch or one per world (leading axis G is 1 or N).

    Attributes:
        solo: (G, M, B) mean execution time alone, ms.
        h2d: (G, M, B) copy in, ms.
        d2h: (G, M, B) copy back, ms.
        count: (G, K + 1) slowdown by number of batches that execute on one core (index 0 unused, index 1 is 1).
        share: (G, M * B) share of the solo execution in which the device is the bottleneck, not the host. The slower of both
            paths counts: ``max(share_i (1 + device_slowdown sum_j share_j), 1 + host_slowdown n)`` with the co-runners j.
        pair: (G, M * B, M * B) log of the factor by which a co-runner on another core (column) slows a batch (row) beyond
            that; a co-runner that has its core for a share of the time counts with that share.
        residual: (G, R) measured over fitted execution time; each batch draws one.
        device: (G,) records.
        shared_core_wait_ms: (G, 2, 2) mean of what the hand-over of a batch and the sight of its end (rows HANDOVER and SEEN)
            take longer while batches share another core, and while they share its own (columns OTHER_CORE and OWN_CORE).
        log_slowdown: (1, K, S) log of the factor on execution times on each core at the knots of the drift, as it was
            measured; it takes the place of the drift that is drawn, and begins anew after its last. S = 0: there is none.
    """

    solo: np.ndarray
    h2d: np.ndarray
    d2h: np.ndarray
    count: np.ndarray  # type: ignore[assignment]  # hides tuple.count, which nobody calls
    share: np.ndarray
    pair: np.ndarray
    residual: np.ndarray
    device: np.ndarray
    shared_core_wait_ms: np.ndarray
    log_slowdown: np.ndarray
