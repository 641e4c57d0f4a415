"""How the offline models are judged: held-out groups, adaptation on top of a fit, and the noise floor of the measurements."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.interference.coruns import CoRuns
from benchmarks.interference.model import OfflineModel
from traces.measurements import Measurements


def cross_validate(data: CoRuns, make: Callable[[], OfflineModel], fold: np.ndarray) -> np.ndarray:
    """Slowdown (S,) of each piece from a model that never saw the fold of its batch.

    Args:
        data: the co-runs.
        make: returns an unfitted model.
        fold: (N,) fold of each batch.
    """
    out = np.ones(len(data.batch))
    for f in np.unique(fold):
        model = make().fit(data, fold != f)
        held = fold[data.batch] == f
        out[held] = model.slowdown(data)[held]
    return out


def adapt(
    data: CoRuns, predicted_ms: np.ndarray, forgetting: float = 0.98, prior: float = 1e-2, noise: float = 1e-4
) -> np.ndarray:
    """Predict, then update: execution times (N,) when each group is met for the first time, batch by batch.

    On top of the offline prediction each model has a bias, and slopes by the two batch sizes and its share, learned by
    recursive least squares with forgetting; they start at zero with every group, so nothing leaks between groups.
    Batches that start together are predicted before either is learned from.

    Args:
        data: the co-runs.
        predicted_ms: (N,) by a model that never saw the group.
        forgetting: factor per batch.
        prior: variance of each coefficient at the start.
        noise: variance of one measured slowdown.
    """
    beside = data.variants()[1][data.first, 0]
    sizes = (np.log2(data.size[of]) / 5.0 - 0.6 for of in (data.variant, beside))
    x = np.column_stack([np.ones(len(data.variant)), data.device_share[data.variant] - 0.5, *sizes])
    base = predicted_ms / data.batch_solo_ms
    model, n_models = data.model[data.variant], int(data.model.max()) + 1
    out = predicted_ms.copy()
    for group in np.unique(data.group):
        rows = np.flatnonzero(data.group == group)
        rows = rows[np.argsort(data.start_ms[rows], kind="stable")]
        theta = np.zeros((n_models, x.shape[1]))
        cov = np.tile(prior * np.eye(x.shape[1]), (n_models, 1, 1))
        for start in np.unique(data.start_ms[rows]):
            now = rows[data.start_ms[rows] == start]
            for i in now:
                out[i] = (base[i] + x[i] @ theta[model[i]]) * data.batch_solo_ms[i]
            for i in now:
                m = model[i]
                p = cov[m] / forgetting
                gain = p @ x[i] / (x[i] @ p @ x[i] + noise)
                theta[m] = theta[m] + gain * (data.measured[i] - base[i] - x[i] @ theta[m])
                cov[m] = p - np.outer(gain, x[i] @ p)
    return out


def repeats_of(measurements: Measurements) -> np.ndarray:
    """(N,) equal numbers for repeats: batches at the same stream and place of runs of the same batches on the same streams."""
    frame = measurements.batches
    run, stream = frame["run"].to_numpy(), frame["stream"].to_numpy()
    what = list(zip(stream.tolist(), frame["model"].astype(str), frame["batch_size"].tolist(), strict=True))
    order = np.lexsort((frame["dispatch_ms"].to_numpy(), stream, run))
    known: dict[tuple, int] = {}
    out = np.zeros(len(frame), np.int64)
    for rows in np.split(order, np.flatnonzero(np.diff(run[order])) + 1):
        scenario = tuple(what[i] for i in rows)
        for place, row in enumerate(rows):
            out[row] = known.setdefault((scenario, place), len(known))
    return out


def repeat_gaps(
    key: np.ndarray, residual: np.ndarray, which: np.ndarray, start_ms: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Differences between like batches, which no model that knows only what they have in common can predict.

    Where the residual is that of a model, its errors are the same in both and cancel. The difference of two is root two times
    as wide as the error of the best prediction.

    Args:
        key: (N,) equal for like batches.
        residual: (N,) log of measured over predicted time.
        which: (N,) bool, batches to look at.
        start_ms: (N,) start of each batch.

    Returns:
        Gaps (P,) over root two in percent of all pairs, and the row (P,) of one batch of each.
    """
    rows = np.flatnonzero(which)
    rows = rows[np.lexsort((start_ms[rows], key[rows]))]
    gaps, first = [np.zeros(0)], [np.zeros(0, np.int64)]
    for apart in range(1, len(rows)):
        a, b = rows[:-apart], rows[apart:]
        near = key[a] == key[b]
        if not near.any():  # nor any further apart
            break
        gaps.append(100.0 * np.abs(residual[a[near]] - residual[b[near]]) / np.sqrt(2.0))
        first.append(a[near])
    return np.concatenate(gaps), np.concatenate(first)
