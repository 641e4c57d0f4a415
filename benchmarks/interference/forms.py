"""Columns of our offline model for three ways in which a device is shared.

Each function gives the columns (S, C) of a piece's log slowdown and the ridge penalty of each column.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_matrix, hstack

from benchmarks.interference.coruns import CoRuns


def _indicators(index: np.ndarray, n: int, value: np.ndarray | None = None) -> np.ndarray:
    """(S, n) with ``value`` (1 by default) in the column that ``index`` names."""
    out = np.zeros((len(index), n))
    out[np.arange(len(index)), index] = 1.0 if value is None else value
    return out


def _standard(blocks: list[tuple[np.ndarray, float]]) -> tuple[csr_matrix, np.ndarray]:
    """Columns scaled to unit variance behind a free constant."""
    x = np.concatenate([b for b, _ in blocks], axis=1)
    penalty = np.concatenate([np.full(b.shape[1], p) for b, p in blocks])
    x = (x - x.mean(axis=0)) / (x.std(axis=0) + 1e-12)
    return csr_matrix(np.concatenate([np.ones((len(x), 1)), x], axis=1)), np.concatenate(([1e-9], penalty))


def _pair(data: CoRuns) -> dict[str, np.ndarray]:
    """What is known of both sides of a pair of batches on parts of one device."""
    own = data.variant[data.batch]
    other = data.other_variant()[0][:, 0]
    t, u = data.solo_ms[own], data.solo_ms[other]
    return {
        "own": data.model[own],
        "other": data.model[other],
        "t": t,
        "u": u,
        "size": data.size[own],
        "memory": data.demand[own, 1],
        "cache": data.demand[own, 2],
        "memory_other": data.demand[other, 1],
        "cache_other": data.demand[other, 2],
        "rate": data.size[own] / t,
        "rate_other": data.size[other] / u,
        "ratio": np.log(t / u),
    }


def duration_form(data: CoRuns) -> tuple[csr_matrix, np.ndarray]:
    """Two batches on parts of one device, seen through their durations.

    A batch that is short beside its co-runner meets it at every moment; one that is long meets its pauses too. A model
    of many short kernels pays for scheduling, more for each at small batches (1 / T, 1 / size by model).
    """
    p = _pair(data)
    m = len(np.unique(data.model))
    shared = np.stack(
        [
            p["t"] / (p["t"] + p["u"]),
            np.abs(p["ratio"]),
            p["memory_other"] * p["cache_other"],
            p["cache"] * p["cache_other"],
            p["rate"] / p["u"],
            p["memory"] * np.log(p["t"]),
        ],
        axis=1,
    )
    launch = [_indicators(p["own"], m, 1.0 / p["t"]), _indicators(p["own"], m, 1.0 / p["size"])]
    return _standard([(shared, 1e-3), (launch[0], 1e-2), (launch[1], 1e-2)])


def throughput_form(data: CoRuns) -> tuple[csr_matrix, np.ndarray]:
    """Two batches on parts of one device, seen through their throughputs, with shrunk effects of victim and aggressor."""
    p = _pair(data)
    m = len(np.unique(data.model))
    shared = np.stack(
        [p["ratio"], p["rate"] * p["rate_other"], np.abs(p["ratio"]), p["memory"] * p["cache_other"]], axis=1
    )
    return _standard(
        [
            (shared, 1e-3),
            (_indicators(p["own"], m, 1.0 / p["size"]), 1e-2),
            (_indicators(p["other"], m, p["rate_other"]), 1e-2),
            (_indicators(p["own"], m), 1.0),
            (_indicators(p["other"], m), 1.0),
        ]
    )


def open_form(data: CoRuns) -> tuple[csr_matrix, np.ndarray]:
    """Clients that share a whole device through a serving stack: each model's slowdown is a power of the load beside it.

    The load is the summed share of time in which the others execute; exponents are shared by stack and model and shrunk,
    with their own for each (stack, model).
    """
    own = data.variant[data.batch]
    other, there = data.other_variant()
    load = np.log1p((data.load[other] * there).sum(axis=1))[:, None]
    count = np.log1p(there.sum(axis=1))[:, None]
    model, family = data.model[own], data.family[own]
    n_models, n_families = int(data.model.max()) + 1, int(data.family.max()) + 1
    by_model = _indicators(model, n_models)
    by_family = _indicators(family, n_families)
    both = _indicators(family * n_models + model, n_families * n_models)
    columns = [by_family * count, by_model * count, both * count, data.high[own][:, None] * count]
    columns += [by_family * load, by_model * load]
    x = np.concatenate([np.ones((len(own), 1)), *columns], axis=1)
    return csr_matrix(x), np.concatenate(([1e-9], np.full(x.shape[1] - 1, 1e-3)))


def lanes_form(data: CoRuns) -> tuple[csr_matrix, np.ndarray]:
    """Batches pinned to lanes: those on one lane are time-sliced, those on other lanes share memory and caches.

    Columns: the number on the lane and in all; products of demands of both sides, beside (weighted by how
    much of the time the other executes) and on the lane; pairs of models, and each variant as victim and aggressor; and
    each variant on streams where it was never measured solo.
    """
    own = data.variant[data.batch]
    other, there = data.other_variant()
    n_lane, beside, weight = data.lane_mates()
    k = data.others.shape[1] + 1
    s, v, m = len(own), len(data.solo_ms), int(data.model.max()) + 1
    n = 1 + there.sum(axis=1)
    over = np.maximum(n / data.cores, 1.0) if data.cores else np.ones(s)
    lane_counts = _indicators(n_lane - 1, k)[:, 1:]
    counts = _indicators(n - 1, k)[:, 1:]
    base = np.concatenate([np.log(n_lane)[:, None], np.log(over)[:, None], lane_counts, counts], axis=1)
    base_penalty = np.concatenate(([1e-6, 1e-6], np.full(2 * (k - 1), 1e-4)))
    d = data.demand.shape[1]
    products = []
    for w in (weight, (there & ~beside) * 1.0):
        them = (data.demand[other] * w[:, :, None]).sum(axis=1)
        products.append((data.demand[own][:, :, None] * them[:, None, :]).reshape(s, d * d))
    rows, cols, vals = [], [], []
    at_row, at_col = m * m, m * m + v
    for slot in range(k - 1):
        at = np.flatnonzero(weight[:, slot] > 0)
        w = weight[at, slot]
        mine, them = own[at], other[at, slot]
        for index in (data.model[mine] * m + data.model[them], at_row + mine, at_col + them):
            rows.append(at)
            cols.append(index)
            vals.append(w)
    rows.append(np.arange(s))
    cols.append(m * m + 2 * v + own)
    vals.append(data.away[data.batch])
    n_effects = m * m + 3 * v
    effects = csr_matrix((np.concatenate(vals), (np.concatenate(rows), np.concatenate(cols))), shape=(s, n_effects))
    x = hstack([csr_matrix(base), csr_matrix(np.concatenate(products, axis=1)), effects], format="csr")
    penalty = np.concatenate([base_penalty, np.full(2 * d * d, 1e-4), np.full(n_effects, 2e-4)])
    return x, penalty
