"""Measured co-locations in one form for every data set, and what is common to the models that are fitted to them.

A batch is cut into pieces during which its co-running set did not change. A model gives the slowdown in each piece;
``finish`` integrates the work done over the pieces to an execution time, so every model is judged by the same rule.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from envs.profiles.segments import cut
from traces.measurements import Measurements


@dataclass(frozen=True)
class CoRuns:
    """N batches of V variants (a model at a batch size, and at a share of the device where there is one), in S pieces.

    Attributes:
        variant: (N,) variant of each batch. exec_ms: (N,) its measured execution time. lane: (N,) what it is pinned to.
        away: (N,) 1 where it ran on a stream on which nothing ran solo: its thread may keep memory that the solo runs' did not.
        group: (N,) the unit of splits: a number for each co-location set, pair or workload.
        start_ms: (N,) start, on one clock. end_ms: (N,) when its time was known. alone: (N,) whether it ran solo by design.
        batch: (S,) batch of each piece. dt_ms: (S,) its length.
        others: (S, K - 1) batches that run beside it, -1 for none.
        solo_ms: (V,) execution alone. demand: (V, 3) compute, memory bandwidth, cache as fractions of the device.
        model: (V,) model index. size: (V,) batch size. share: (V,) fraction of the device it may use.
        load: (V,) fraction of the time that it executes while it is in the set. family: (V,) index of the software stack.
        high: (V,) 1 for high priority. cores: batches that run side by side without time slicing; 0 for no limit.
    """

    variant: np.ndarray
    exec_ms: np.ndarray
    lane: np.ndarray
    away: np.ndarray
    group: np.ndarray
    start_ms: np.ndarray
    end_ms: np.ndarray
    alone: np.ndarray
    batch: np.ndarray
    dt_ms: np.ndarray
    others: np.ndarray
    solo_ms: np.ndarray
    demand: np.ndarray
    model: np.ndarray
    size: np.ndarray
    share: np.ndarray
    load: np.ndarray
    family: np.ndarray
    high: np.ndarray
    cores: float = 0.0
    models: tuple[str, ...] = field(default=())

    @property
    def solo(self) -> np.ndarray:
        """(N,) execution time alone of each batch, in ms."""
        return self.solo_ms[self.variant]

    @property
    def measured(self) -> np.ndarray:
        """(N,) measured slowdown: execution time over that alone."""
        return self.exec_ms / self.solo

    @property
    def n_corunners(self) -> np.ndarray:
        """(N,) batches that ran beside each, at the most at one time."""
        count = (self.others >= 0).sum(axis=1)
        out = np.zeros(len(self.variant), np.int64)
        np.maximum.at(out, self.batch, count)
        return out

    def other_variant(self) -> tuple[np.ndarray, np.ndarray]:
        """(S, K - 1) variants that run beside each piece (0 where there is none), and whether there is one."""
        there = self.others >= 0
        return np.where(there, self.variant[np.maximum(self.others, 0)], 0), there

    def lane_mates(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Who shares the lane of a piece: (S,) batches on its own lane, itself counted.

        Returns:
            n_lane (S,); beside (S, K - 1), whether a co-runner is on another lane; and share (S, K - 1), the part of the
            time that it then executes: one over the batches on its lane.
        """
        there = self.others >= 0
        lane = np.where(there, self.lane[np.maximum(self.others, 0)], -1)
        own = self.lane[self.batch]
        n_lane = 1 + (lane == own[:, None]).sum(axis=1)
        on_theirs = ((lane[:, :, None] == lane[:, None, :]) & there[:, None, :]).sum(axis=2)
        beside = there & (lane != own[:, None])
        return n_lane, beside, np.where(beside, 1.0 / np.maximum(on_theirs, 1), 0.0)


def from_measurements(measurements: Measurements, solo_ms: np.ndarray, demand: np.ndarray) -> CoRuns:
    """A campaign as co-runs. On a CPU stream k is pinned to core k % cores; on a GPU every stream is a lane of its own.

    Args:
        measurements: the campaign. solo_ms: (M, B) execution alone. demand: (M, B, 3), see envs.fit.demands.
    """
    machine = measurements.machine
    pieces = cut(measurements)
    stream = measurements.batches["stream"].to_numpy().astype(np.int64)
    cores = machine.device.cores if machine.device.kind == "cpu" else 0
    sizes = np.asarray(machine.batch_sizes, float)
    n_models = len(machine.models)
    v = solo_ms.size
    return CoRuns(
        variant=pieces.mb,
        exec_ms=pieces.exec_ms,
        lane=stream % cores if cores else stream,
        away=(~np.isin(stream, stream[pieces.solo])).astype(float),
        group=pieces.set_id,
        start_ms=pieces.start_ms,
        end_ms=pieces.start_ms + pieces.exec_ms,
        alone=pieces.solo,
        batch=pieces.batch,
        dt_ms=pieces.dt_ms,
        others=_beside(measurements, pieces.batch, pieces.dt_ms),
        solo_ms=solo_ms.ravel(),
        demand=demand.reshape(v, -1),
        model=np.repeat(np.arange(n_models), len(sizes)),
        size=np.tile(sizes, n_models),
        share=np.ones(v),
        load=np.ones(v),
        family=np.zeros(v, np.int64),
        high=np.zeros(v),
        cores=float(cores),
        models=tuple(m.name for m in machine.models),
    )


def _beside(measurements: Measurements, batch: np.ndarray, dt_ms: np.ndarray) -> np.ndarray:
    """Batches (S, K - 1) that execute beside each piece, on whatever lane; the pieces of a batch lie together, in order."""
    frame = measurements.batches
    start, end = frame["exec_start_ms"].to_numpy(), frame["exec_end_ms"].to_numpy()
    row = np.empty(int(frame["batch_id"].max()) + 1, np.int64)
    row[frame["batch_id"].to_numpy()] = np.arange(len(frame))
    pairs = measurements.overlaps()
    mine, them = row[pairs["batch_id"].to_numpy()], row[pairs["other_batch_id"].to_numpy()]
    order = np.argsort(mine, kind="stable")
    mine, them = mine[order], them[order]
    count = np.bincount(mine, minlength=len(frame))
    partner = np.full((len(frame), max(int(count.max()), 1)), -1)
    partner[mine, np.arange(len(mine)) - (np.cumsum(count) - count)[mine]] = them
    passed = np.cumsum(dt_ms)
    first = np.concatenate(([0], np.flatnonzero(np.diff(batch)) + 1))
    before = np.repeat((passed - dt_ms)[first], np.diff(np.concatenate((first, [len(batch)]))))
    middle = start[batch] + passed - before - dt_ms / 2
    near = partner[batch]
    there = (near >= 0) & (start[near] <= middle[:, None]) & (end[near] >= middle[:, None])
    # Those that are there come first, in the columns that a device of K streams needs.
    rank = np.argsort(~there, axis=1, kind="stable")[:, : max(measurements.machine.streams - 1, 1)]
    return np.where(np.take_along_axis(there, rank, 1), np.take_along_axis(near, rank, 1), -1)


def finish(data: CoRuns, slowdown: np.ndarray, speed: np.ndarray | None = None) -> np.ndarray:
    """Execution times (N,) in ms that slowdowns of pieces (S,) add up to.

    Work of a piece is its length over its slowdown. A batch predicted to end early ends within a piece; one predicted to
    end late goes on at the slowdown of its last piece.

    Args:
        data: the co-runs. slowdown: (S,) at least 1. speed: (N,) factor on all slowdowns of a batch (drift of the machine).
    """
    n = len(data.variant)
    slow = slowdown if speed is None else slowdown * speed[data.batch]
    left = data.solo.astype(float).copy()
    out = np.zeros(n)
    order = np.argsort(data.batch, kind="stable")
    first = np.searchsorted(data.batch[order], np.arange(n))
    count = np.bincount(data.batch, minlength=n)
    last = np.ones(n)
    for i in range(int(count.max())):
        has = np.flatnonzero(count > i)
        piece = order[first[has] + i]
        step = np.minimum(data.dt_ms[piece], left[has] * slow[piece])
        out[has] += step
        left[has] -= step / slow[piece]
        last[has] = slow[piece]
    return out + np.maximum(left, 0.0) * last


def start_only(data: CoRuns, slowdown: np.ndarray) -> np.ndarray:
    """Execution times (N,) in ms as if the set at the start stayed: what coarse predictors assume."""
    n = len(data.variant)
    first = np.full(n, -1)
    first[data.batch[::-1]] = np.arange(len(data.batch))[::-1]
    return data.solo * slowdown[first]


def mean_over_batch(data: CoRuns, x: np.ndarray) -> np.ndarray:
    """Means over the pieces of each batch (N, F), weighted by the length of the overlap, of features (S, F)."""
    n = len(data.variant)
    total = np.maximum(np.bincount(data.batch, data.dt_ms, n), 1e-12)
    return np.stack([np.bincount(data.batch, data.dt_ms * column, n) / total for column in x.T], axis=1)


def demand_features(data: CoRuns) -> np.ndarray:
    """Features of each piece from counts and demands alone, so that they hold for unseen models: (S, 16)."""
    own = data.demand[data.variant[data.batch]]
    other, there = data.other_variant()
    weight = there * data.load[other]
    them = (data.demand[other] * weight[:, :, None]).sum(axis=1)
    n_lane, _, _ = data.lane_mates()
    n = 1.0 + weight.sum(axis=1)
    over = np.maximum(n / data.cores - 1.0, 0.0) if data.cores else np.zeros(len(n))
    mean_solo = (data.solo_ms[other] * weight).sum(axis=1) / np.maximum(weight.sum(axis=1), 1e-12)
    ratio = data.solo_ms[data.variant[data.batch]] / np.maximum(
        data.solo_ms[data.variant[data.batch]] + mean_solo, 1e-12
    )
    columns = [n - 1.0, over, n_lane - 1.0, ratio * (n > 1.0)]
    columns += [own[:, d] for d in range(own.shape[1])]
    columns += [them[:, d] for d in range(own.shape[1])]
    columns += [own[:, d] * them[:, d] for d in range(own.shape[1])]
    columns += [over * them[:, 1], (n_lane - 1.0) * own[:, 1], own[:, 2] * them[:, 1]]
    return np.stack(columns, axis=1)


@dataclass(frozen=True)
class Errors:
    """Errors in percent: mean absolute, its 90th and 99th percentile, mean under- and over-prediction, number."""

    mape: float
    p90: float
    p99: float
    under: float
    over: float
    n: int


def errors(predicted: np.ndarray, measured: np.ndarray) -> Errors:
    """Errors of predictions against measurements; under and over are each divided by all batches, so they add up."""
    e = 100.0 * (predicted / measured - 1.0)
    a = np.abs(e)
    p90, p99 = np.quantile(a, [0.9, 0.99])
    return Errors(
        mape=float(a.mean()),
        p90=float(p90),
        p99=float(p99),
        under=float(np.maximum(-e, 0.0).mean()),
        over=float(np.maximum(e, 0.0).mean()),
        n=len(e),
    )


def folds(group: np.ndarray, k: int) -> np.ndarray:
    """Fold (N,) of each batch by a hash of its group (multiplicative, Knuth), the same on every machine."""
    return (((group.astype(np.uint64) + np.uint64(1)) * np.uint64(2654435761)) >> np.uint64(8)).astype(np.int64) % k
