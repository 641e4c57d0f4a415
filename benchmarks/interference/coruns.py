"""Measured co-locations in one form for every data set, and what is common to the models that are fitted to them.

A batch is cut into pieces during which its co-running set did not change. A model gives the slowdown in each piece;
``finish`` integrates the work done over the pieces to an execution time, so every model is judged by the same rule.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from envs.profiles.segments import Segments


@dataclass(frozen=True)
class CoRuns(Segments):
    """Segments, with what is known of V variants: a model at a batch size, and at a share of the device where there is one.

    Attributes:
        away: (N,) 1 where the batch ran on a stream without solo runs: its thread may keep memory that those of the solo
            runs did not.
        solo_ms: (V,) execution alone.
        demand: (V, 3) compute, memory bandwidth, cache as fractions of the device.
        model: (V,) model index.
        size: (V,) batch size.
        device_share: (V,) fraction of the device that it may use.
        load: (V,) fraction of the time that it executes while it is in the set.
        family: (V,) index of the software stack.
        high: (V,) 1 for high priority.
        cores: batches that run side by side without time slicing; 0 for no limit.
    """

    away: np.ndarray
    solo_ms: np.ndarray
    demand: np.ndarray
    model: np.ndarray
    size: np.ndarray
    device_share: np.ndarray
    load: np.ndarray
    family: np.ndarray
    high: np.ndarray
    cores: float = 0.0

    @property
    def batch_solo_ms(self) -> np.ndarray:
        """(N,) execution time alone of each batch, in ms."""
        return self.solo_ms[self.variant]

    @property
    def measured(self) -> np.ndarray:
        """(N,) measured slowdown: execution time over that alone."""
        return self.exec_ms / self.batch_solo_ms

    @property
    def n_corunners(self) -> np.ndarray:
        """(N,) largest number of batches that ran beside each at one time."""
        out = np.zeros(len(self.variant), np.int64)
        np.maximum.at(out, self.batch, self.there.sum(axis=1))
        return out

    @property
    def beside_others(self) -> np.ndarray:
        """(N,) batches that ran beside others."""
        return ~self.alone & (self.n_corunners > 0)

    @property
    def first(self) -> np.ndarray:
        """(N,) first piece of each batch."""
        return np.unique(self.batch, return_index=True)[1]


# What a data set may leave out of its table of variants.
DEFAULTS = {"device_share": 1.0, "load": 1.0, "family": 0, "high": 0.0}
DEMAND = ["compute", "memory", "cache"]


def co_runs(segments: Segments, variants: pd.DataFrame, cores: float = 0.0, away: np.ndarray | None = None) -> CoRuns:
    """Segments with a table of their variants.

    Args:
        segments: the batches.
        variants: columns model (index), size, solo_ms, and `DEMAND`; those of `DEFAULTS` where a data set has them.
        cores: see ``CoRuns``.
        away: (N,) see ``CoRuns``; None: nowhere.
    """
    whole = pd.DataFrame(DEFAULTS, index=variants.index).assign(**variants)
    numbers = ("size", "solo_ms", "device_share", "load", "high")
    return CoRuns(
        **{name: getattr(segments, name) for name in Segments.__dataclass_fields__},
        **{name: whole[name].to_numpy(float) for name in numbers},
        **{name: whole[name].to_numpy(np.int64) for name in ("model", "family")},
        demand=whole[DEMAND].to_numpy(float),
        away=np.zeros(len(segments.variant)) if away is None else away,
        cores=cores,
    )


def whole_batches(
    variant: np.ndarray, exec_ms: np.ndarray, start_ms: np.ndarray, others: np.ndarray, group: np.ndarray
) -> Segments:
    """Segments of batches (N,) that keep their co-runners (N, K - 1) to the end, each on its own part of the device."""
    rows, alone = np.arange(len(variant)), np.zeros(len(variant), bool)
    return Segments(variant, exec_ms, start_ms, rows, alone, group, rows, exec_ms, others)


def finish(data: CoRuns, slowdown: np.ndarray) -> np.ndarray:
    """Execution times (N,) in ms that slowdowns of pieces (S,) add up to.

    Work of a piece is its length over its slowdown. A batch predicted to end early ends within a piece; one predicted to
    end late goes on at the slowdown of its last piece.

    Args:
        data: the co-runs.
        slowdown: (S,) of each piece.
    """
    work, solo, first = data.dt_ms / slowdown, data.batch_solo_ms, data.first
    before = np.cumsum(work) - work
    left = np.maximum((solo + before[first])[data.batch] - before, 0.0)
    missing = np.maximum(solo - data.over_batches(work), 0.0)
    last = first + np.bincount(data.batch) - 1
    return data.over_batches(np.minimum(data.dt_ms, left * slowdown)) + missing * slowdown[last]


def start_only(data: CoRuns, slowdown: np.ndarray) -> np.ndarray:
    """Execution times (N,) in ms as if the set at the start stayed: what coarse predictors assume."""
    return data.batch_solo_ms * slowdown[data.first]


def mean_over_batch(data: CoRuns, x: np.ndarray) -> np.ndarray:
    """Means over the pieces of each batch (N, F), weighted by the length of the overlap, of features (S, F)."""
    total = np.maximum(data.over_batches(data.dt_ms), 1e-12)
    return np.stack([data.over_batches(data.dt_ms * column) / total for column in x.T], axis=1)


def demand_features(data: CoRuns) -> np.ndarray:
    """Features of each piece from counts and demands alone, so that they hold for unseen models: (S, 16)."""
    mine, them = data.variants()
    weight = data.there * data.load[them]
    own, others = data.demand[mine], (data.demand[them] * weight[:, :, None]).sum(axis=1)
    n, same_core = 1.0 + weight.sum(axis=1), data.n - 1.0
    over = np.maximum(n / data.cores - 1.0, 0.0) if data.cores else np.zeros(len(n))
    mean_solo = (data.solo_ms[them] * weight).sum(axis=1) / np.maximum(weight.sum(axis=1), 1e-12)
    ratio = data.solo_ms[mine] / np.maximum(data.solo_ms[mine] + mean_solo, 1e-12)
    counts = [n - 1.0, over, same_core, ratio * (n > 1.0)]
    mixed = [over * others[:, 1], same_core * own[:, 1], own[:, 2] * others[:, 1]]
    return np.column_stack([*counts, own, others, own * others, *mixed])


def errors(predicted: np.ndarray, measured: np.ndarray) -> dict[str, float]:
    """Errors of predictions against measurements, in percent.

    Returns:
        Mean absolute error (mape), its 90th and 99th percentile (p90, p99), the parts of the mean by sign (under, over), and
        the number of batches (n).
    """
    e = 100.0 * (predicted / measured - 1.0)
    p90, p99 = np.quantile(np.abs(e), [0.9, 0.99]).tolist()
    under, over = float(np.maximum(-e, 0.0).mean()), float(np.maximum(e, 0.0).mean())
    return {"mape": under + over, "p90": p90, "p99": p99, "under": under, "over": over, "n": len(e)}


def folds(group: np.ndarray, k: int) -> np.ndarray:
    """Fold (N,) of each batch by a hash of its group (multiplicative, Knuth), the same on every machine."""
    return (((group.astype(np.uint64) + np.uint64(1)) * np.uint64(2654435761)) >> np.uint64(8)).astype(np.int64) % k
