"""Measured co-locations with known slowdowns."""

from __future__ import annotations

import numpy as np

from benchmarks.interference.coruns import CoRuns


def co_runs(n: int = 400, seed: int = 0, slow=lambda own, other: 1.0 + own[:, 1] * other[:, 1]) -> CoRuns:
    """Pairs of batches that overlap for their second half; the slowdown while they do is known."""
    r = np.random.default_rng(seed)
    v = 8
    solo_ms, demand = r.uniform(4.0, 40.0, v), r.uniform(0.2, 1.0, (v, 3))
    variant = r.integers(0, v, n)
    other = variant[np.arange(n) ^ 1]
    beside = slow(demand[variant], demand[other])
    alone_ms = solo_ms[variant] / 2
    exec_ms = alone_ms + solo_ms[variant] / 2 * beside
    rows = np.arange(n)
    return CoRuns(
        variant=variant,
        exec_ms=exec_ms,
        core=rows % 2,
        away=np.zeros(n),
        group=variant * v + other,
        start_ms=rows * 100.0,
        alone=np.zeros(n, bool),
        batch=np.repeat(rows, 2),
        dt_ms=np.stack([alone_ms, exec_ms - alone_ms], axis=1).ravel(),
        others=np.stack([np.full(n, -1), rows ^ 1], axis=1).reshape(-1, 1),
        solo_ms=solo_ms,
        demand=demand,
        model=np.arange(v) // 2,
        size=np.tile([1.0, 4.0], v // 2),
        device_share=np.ones(v),
        load=np.ones(v),
        family=np.zeros(v, np.int64),
        high=np.zeros(v),
        cores=2.0,
    )
