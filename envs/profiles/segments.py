"""Measured batches cut where their co-running set changes: profiles are fitted to these, interference models judged by them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from traces.errors import InputError
from traces.machine import CPU_TURN_MS, MachineInfo
from traces.measurements import Measurements

if TYPE_CHECKING:  # as in envs.profiles.fit
    from scipy.sparse import csr_matrix


@dataclass(frozen=True)
class Segments:
    """N batches and the S pieces of their executions during which the co-running set did not change.

    Attributes:
        variant: (N,) what each batch was: model index * B + batch-size index.
        exec_ms: (N,) its execution time.
        start_ms: (N,) start of its execution.
        core: (N,) core that it ran on, or stream where streams share no cores.
        alone: (N,) whether it ran alone by design.
        group: (N,) number of its co-location set (models and sizes of its run that overlap it): the unit of splits.
        batch: (S,) row of the batch that a piece belongs to; the pieces of a batch lie together, in order of time.
        dt_ms: (S,) length of the piece.
        others: (S, K - 1) rows of the batches that execute beside it, on whatever core, -1 where there is none.
    """

    variant: np.ndarray
    exec_ms: np.ndarray
    start_ms: np.ndarray
    core: np.ndarray
    alone: np.ndarray
    group: np.ndarray
    batch: np.ndarray
    dt_ms: np.ndarray
    others: np.ndarray

    @cached_property
    def there(self) -> np.ndarray:
        """(S, K - 1) whether there is a co-runner."""
        return self.others >= 0

    @cached_property
    def _cores(self) -> np.ndarray:
        """(S, K - 1) core of each co-runner, -1 where there is none."""
        return np.where(self.there, self.core[self.others], -1)

    @cached_property
    def n(self) -> np.ndarray:
        """(S,) batches that execute on the piece's core, itself counted."""
        return 1 + (self._cores == self.core[self.batch][:, None]).sum(axis=1)

    @cached_property
    def share(self) -> np.ndarray:
        """(S, K - 1) share that each co-runner has of another core; 0 where it is on the piece's own, or there is none."""
        elsewhere = self.there & (self._cores != self.core[self.batch][:, None])
        on_its_core = (self._cores[:, :, None] == self._cores[:, None, :]).sum(axis=2)
        return elsewhere / np.maximum(on_its_core, 1)

    @cached_property
    def n_other(self) -> np.ndarray:
        """(S,) other cores that execute something."""
        return np.rint(self.share.sum(axis=1)).astype(np.int64)

    def variants(self) -> tuple[np.ndarray, np.ndarray]:
        """(S,) variant of each piece, and (S, K - 1) of its co-runners (any where there is none)."""
        return self.variant[self.batch], self.variant[self.others]

    def over_batches(self, values: np.ndarray) -> np.ndarray:
        """(N,) sums of values (S,) over the pieces of each batch."""
        return np.bincount(self.batch, values, len(self.variant))

    def pair_effects(self, model: np.ndarray) -> csr_matrix:
        """(S, M*M + 2V) effects of the co-runners on other cores, weighted by their share of these.

        Args:
            model: (V,) model of each variant.

        Returns:
            One column for each pair of models, then one for each variant as the victim, and one as the aggressor.
        """
        from scipy.sparse import csr_matrix

        n_models, n_variants = int(model.max()) + 1, len(model)
        row, slot = np.nonzero(self.share)
        mine, them = self.variant[self.batch[row]], self.variant[self.others[row, slot]]
        pairs, victims = n_models * n_models, n_models * n_models + n_variants
        columns = np.concatenate([model[mine] * n_models + model[them], pairs + mine, victims + them])
        weights, rows = np.tile(self.share[row, slot], 3), np.tile(row, 3)
        return csr_matrix((weights, (rows, columns)), shape=(len(self.batch), victims + n_variants))


def cores_of(machine: MachineInfo) -> int:
    """Cores that streams are pinned to in turns (serving.executors.cpu); 0 where every stream is a core of its own."""
    return machine.device.cores if machine.device.kind == "cpu" else 0


def time_slice_of(machine: MachineInfo) -> float:
    """Length in ms of the turns that batches on one core take; 0 where no two share one."""
    return CPU_TURN_MS if cores_of(machine) else 0.0


def model_and_size(measurements: Measurements) -> tuple[np.ndarray, np.ndarray]:
    """Index of the model (N,) and of the batch size (N,) of each batch of a campaign.

    Raises:
        InputError: a batch size that machine.json does not list.
    """
    batches, machine = measurements.batches, measurements.machine
    sizes = list(machine.batch_sizes)
    if unknown := sorted(set(batches["batch_size"].tolist()) - set(sizes)):
        raise InputError(f"batches.parquet: batch_size {unknown[0]} is not among {sizes} of machine.json")
    index = {m.name: i for i, m in enumerate(machine.models)}
    return (
        batches["model"].astype(str).map(index).to_numpy(np.int64),
        batches["batch_size"].map(sizes.index).to_numpy(np.int64),
    )


def cut(measurements: Measurements) -> Segments:
    """Cut every batch of a campaign where its co-running set changes; raises InputError as ``model_and_size`` does."""
    frame = measurements.batches
    machine = measurements.machine
    model, size = model_and_size(measurements)
    variant = model * len(machine.batch_sizes) + size
    run = frame["run"].to_numpy()
    start = frame["exec_start_ms"].to_numpy()
    end = frame["exec_end_ms"].to_numpy()
    batch, dt, others = [], [], []
    sets: dict[tuple[int, ...], int] = {}
    group = np.zeros(len(frame), np.int64)
    order = np.lexsort((start, run))
    for rows in np.split(order, np.flatnonzero(np.diff(run[order])) + 1):
        s, f = start[rows], end[rows]
        for i, row in enumerate(rows):
            near = np.flatnonzero((s < f[i]) & (f > s[i]) & (np.arange(len(rows)) != i))
            key = (int(variant[row]), *sorted(int(variant[rows[j]]) for j in near))
            group[row] = sets.setdefault(tuple(sorted(key)), len(sets))
            edges = np.unique(np.clip(np.concatenate(([s[i], f[i]], s[near], f[near])), s[i], f[i]))
            for a, b in zip(edges[:-1], edges[1:], strict=True):
                beside = rows[near[(s[near] <= a) & (f[near] >= b)]][: machine.streams - 1]
                batch.append(row)
                dt.append(b - a)
                others.append(np.pad(beside, (0, machine.streams - 1 - len(beside)), constant_values=-1))
    return Segments(
        variant=variant,
        exec_ms=end - start,
        start_ms=start,
        core=frame["stream"].to_numpy().astype(np.int64) % (cores_of(machine) or machine.streams),
        alone=(frame["kind"] == "solo").to_numpy(),
        group=group,
        batch=np.array(batch, np.int64),
        dt_ms=np.array(dt, float),
        others=np.array(others, np.int64).reshape(len(batch), machine.streams - 1),
    )
