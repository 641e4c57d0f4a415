"""Measured batches cut where their co-running set changes: what both the offline fits and the predictor benchmark read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from traces.errors import InputError
from traces.machine import CPU_TURN_MS, MachineInfo
from traces.measurements import Measurements


@dataclass(frozen=True)
class Segments:
    """N batches and the S pieces of their executions during which the co-running set did not change.

    Attributes:
        batch: (S,) row of the batch that the piece belongs to. dt_ms: (S,) its length.
        n: (S,) batches that execute on its core, the batch itself counted. n_other: (S,) other cores that execute something.
        others: (S, K - 1) rows of the batches that execute on other cores, -1 where there is none.
        share: (S, K - 1) the share of its core that each of them has.
        mb: (N,) model index * B + batch-size index of each batch. exec_ms: (N,) its execution time. core: (N,) that it ran on.
        run: (N,) scenario. solo: (N,) whether it ran alone by design. start_ms: (N,) start of its execution.
        set_id: (N,) number of the co-location set (models and sizes of its run that overlap it): the unit of splits.
    """

    batch: np.ndarray
    dt_ms: np.ndarray
    n: np.ndarray
    n_other: np.ndarray
    others: np.ndarray
    share: np.ndarray
    mb: np.ndarray
    exec_ms: np.ndarray
    core: np.ndarray
    run: np.ndarray
    solo: np.ndarray
    start_ms: np.ndarray
    set_id: np.ndarray


def cores_of(machine: MachineInfo) -> int:
    """Cores that streams are pinned to in turns (serving.executors.cpu); 0 where every stream is a core of its own."""
    return machine.device.cores if machine.device.kind == "cpu" else 0


def time_slice_of(machine: MachineInfo) -> float:
    """Length in ms of the turns that batches on one core take; 0 where no two share one."""
    return CPU_TURN_MS if cores_of(machine) else 0.0


def cut(measurements: Measurements) -> Segments:
    """Cut every batch of a campaign.

    Raises:
        InputError: a batch size that machine.json does not list.
    """
    frame = measurements.batches
    machine = measurements.machine
    model_index = {m.name: i for i, m in enumerate(machine.models)}
    size_index = {s: i for i, s in enumerate(machine.batch_sizes)}
    sizes = frame["batch_size"].to_numpy()
    unknown = sorted(set(sizes.tolist()) - set(size_index))
    if unknown:
        raise InputError(
            f"batches.parquet: batch_size {unknown[0]} is not among {list(machine.batch_sizes)} of machine.json"
        )
    models = frame["model"].astype(str).map(model_index).to_numpy()
    mb = models * len(size_index) + np.array([size_index[s] for s in sizes])
    run = frame["run"].to_numpy()
    start = frame["exec_start_ms"].to_numpy()
    end = frame["exec_end_ms"].to_numpy()
    k = machine.streams
    core = frame["stream"].to_numpy() % (cores_of(machine) or k)
    batch, dt, count, count_other, others, shares = [], [], [], [], [], []
    sets: dict[tuple[int, ...], int] = {}
    set_id = np.zeros(len(frame), np.int64)
    order = np.lexsort((start, run))
    for rows in np.split(order, np.flatnonzero(np.diff(run[order])) + 1):
        s, f = start[rows], end[rows]
        for i, row in enumerate(rows):
            near = np.flatnonzero((s < f[i]) & (f > s[i]) & (np.arange(len(rows)) != i))
            key = (int(mb[row]), *sorted(int(mb[rows[j]]) for j in near))
            set_id[row] = sets.setdefault(tuple(sorted(key)), len(sets))
            edges = np.unique(np.clip(np.concatenate(([s[i], f[i]], s[near], f[near])), s[i], f[i]))
            for a, b in zip(edges[:-1], edges[1:], strict=True):
                beside = near[(s[near] <= a) & (f[near] >= b)]
                away = rows[beside[core[rows[beside]] != core[row]]][: k - 1]
                on_core = core[away]
                row_others, row_share = np.full(k - 1, -1), np.zeros(k - 1)
                row_others[: len(away)] = away
                row_share[: len(away)] = [1.0 / np.count_nonzero(on_core == c) for c in on_core]
                batch.append(row)
                dt.append(b - a)
                count.append(1 + len(beside) - np.count_nonzero(core[rows[beside]] != core[row]))
                count_other.append(len(set(on_core.tolist())))
                others.append(row_others)
                shares.append(row_share)
    return Segments(
        batch=np.array(batch),
        dt_ms=np.array(dt),
        n=np.array(count),
        n_other=np.array(count_other),
        others=np.array(others),
        share=np.array(shares),
        mb=mb,
        exec_ms=end - start,
        core=core,
        run=run,
        solo=(frame["kind"] == "solo").to_numpy(),
        start_ms=start,
        set_id=set_id,
    )
