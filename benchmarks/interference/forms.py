"""Columns of our offline model for the ways in which a device is shared: the candidates that every data set chooses from.

Each function gives the columns (S, C) of a piece's log slowdown and the ridge penalty of each column. All of them hold for any
number of co-runners, none included. benchmarks.interference.nested makes the choice, on training data alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_matrix, hstack

from benchmarks.interference.coruns import CoRuns, demand_features
from envs.profiles.fit import demand_products

Form = Callable[[CoRuns], tuple[csr_matrix, np.ndarray]]


def _indicators(index: np.ndarray, n: int, value: np.ndarray | None = None) -> np.ndarray:
    """(S, n) with ``value`` (1 by default) in the column that ``index`` names."""
    out = np.zeros((len(index), n))
    out[np.arange(len(index)), index] = 1.0 if value is None else value
    return out


def _standard(data: CoRuns, blocks: list[tuple[np.ndarray, float]]) -> tuple[csr_matrix, np.ndarray]:
    """Columns scaled to unit variance, and a free constant; all are 0 where nothing runs beside."""
    beside = np.any(data.there, axis=1)
    x = np.concatenate([b for b, _ in blocks], axis=1)
    penalty = np.concatenate([np.full(b.shape[1], p) for b, p in blocks])
    x = (x - x[beside].mean(axis=0)) / (x[beside].std(axis=0) + 1e-12)
    constant = np.ones((len(x), 1))
    return csr_matrix(beside[:, None] * np.concatenate([constant, x], axis=1)), np.concatenate(([1e-9], penalty))


class _Side(NamedTuple):
    """A batch or its co-runners, all (S,): solo time, batch size, demands on memory and cache, throughput alone.

    Several co-runners count with their mean time and size, and the sums of the rest.
    """

    t: np.ndarray
    size: np.ndarray
    memory: np.ndarray
    cache: np.ndarray
    rate: np.ndarray


def _sides(data: CoRuns) -> tuple[_Side, _Side]:
    """The batch of each piece, and its co-runners; where there is none, itself."""
    own, others = data.variants()
    there = data.there.copy()
    alone = ~there.any(axis=1)
    others[alone, 0], there[alone, 0] = own[alone], True
    return _side(data, own[:, None], np.ones((len(own), 1))), _side(data, others, there)


def _side(data: CoRuns, at: np.ndarray, weight: np.ndarray) -> _Side:
    """The variants (S, J) that count with a weight (S, J)."""
    t, size = data.solo_ms[at], data.size[at]
    sums = [(weight * x).sum(axis=1) for x in (t, size, data.demand[at, 1], data.demand[at, 2], size / t)]
    n = weight.sum(axis=1)
    return _Side(sums[0] / n, sums[1] / n, *sums[2:])


def duration_form(data: CoRuns) -> tuple[csr_matrix, np.ndarray]:
    """Batches on parts of one device, seen through their durations.

    A batch that is short beside its co-runner meets it at every moment; one that is long meets its pauses too. A model
    of many short kernels pays for scheduling, more for each at small batches (1 / T, 1 / size by model).
    """
    own, other = _sides(data)
    n_models, model = int(data.model.max()) + 1, data.model[data.variants()[0]]
    relative = [own.t / (own.t + other.t), np.abs(np.log(own.t / other.t)), own.rate / other.t]
    demand = [other.memory * other.cache, own.cache * other.cache, own.memory * np.log(own.t)]
    launch = [_indicators(model, n_models, 1.0 / of) for of in (own.t, own.size)]
    return _standard(data, [(np.column_stack(relative + demand), 1e-3), *((block, 1e-2) for block in launch)])


def throughput_form(data: CoRuns) -> tuple[csr_matrix, np.ndarray]:
    """Batches on parts of one device, seen through their throughputs, with shrunk effects of victim and aggressor."""
    own, other = _sides(data)
    mine, them = data.variants()
    n_models, ratio = int(data.model.max()) + 1, np.log(own.t / other.t)
    shared = np.column_stack([ratio, own.rate * other.rate, np.abs(ratio), own.memory * other.cache])
    aggressor = [
        np.sum([_indicators(data.model[them[:, j]], n_models, x[:, j]) for j in range(them.shape[1])], axis=0)
        for x in (data.there * data.size[them] / data.solo_ms[them], data.there)
    ]
    victim = [_indicators(data.model[mine], n_models, x) for x in (1.0 / own.size, None)]
    blocks = [(shared, 1e-3), (victim[0], 1e-2), (aggressor[0], 1e-2), (victim[1], 1.0), (aggressor[1], 1.0)]
    return _standard(data, blocks)


def demand_form(data: CoRuns) -> tuple[csr_matrix, np.ndarray]:
    """Counts and demands of both sides and their products, as the scheduler's predictor has them, without any model's own."""
    return _standard(data, [(demand_features(data), 1e-3)])


def open_form(data: CoRuns) -> tuple[csr_matrix, np.ndarray]:
    """Clients that share a whole device through a serving stack: each model's slowdown is a power of the load beside it.

    The load is the summed share of time in which the others execute; exponents are shared by stack and model and shrunk,
    with their own for each (stack, model).
    """
    own, other = data.variants()
    load = np.log1p((data.load[other] * data.there).sum(axis=1))[:, None]
    count = np.log1p(data.there.sum(axis=1))[:, None]
    model, family = data.model[own], data.family[own]
    n_models, n_families = int(data.model.max()) + 1, int(data.family.max()) + 1
    by_model = _indicators(model, n_models)
    by_family = _indicators(family, n_families)
    both = _indicators(family * n_models + model, n_families * n_models)
    columns = [by_family * count, by_model * count, both * count, data.high[own][:, None] * count]
    columns += [by_family * load, by_model * load]
    x = np.concatenate([np.ones((len(own), 1)), *columns], axis=1)
    return csr_matrix(x), np.concatenate(([1e-9], np.full(x.shape[1] - 1, 1e-3)))


def cores_form(data: CoRuns) -> tuple[csr_matrix, np.ndarray]:
    """Batches pinned to cores: those on one core are time-sliced, those on other cores share memory and caches.

    Columns: the number on the core and in all; products of demands of both sides, on other cores (weighted by how much of
    the time the co-runner executes) and on the same one; pairs of models, and each variant as victim and aggressor; and each
    variant on streams where it was never measured alone.
    """
    own, _ = data.variants()
    k, n_variants = data.others.shape[1] + 1, len(data.solo_ms)
    n = 1 + data.there.sum(axis=1)
    over = np.maximum(n / data.cores, 1.0) if data.cores else np.ones(len(n))
    counts = [_indicators(data.n - 1, k)[:, 1:], _indicators(n - 1, k)[:, 1:]]
    same_core = data.there & (data.share == 0)
    products = [demand_products(data, data.demand, weight) for weight in (data.share, same_core)]
    dense = np.column_stack([np.log(data.n), np.log(over), *counts, *products])
    away = csr_matrix((data.away[data.batch], (np.arange(len(own)), own)), shape=(len(own), n_variants))
    effects = data.pair_effects(data.model)
    x = hstack([csr_matrix(dense), effects, away], format="csr")
    n_effects = effects.shape[1] + n_variants
    return x, np.repeat([1e-6, 1e-4, 2e-4], [2, dense.shape[1] - 2, n_effects])


# The candidates by name; where there are several forms, their log slowdowns are averaged.
CANDIDATES: dict[str, tuple[Form, ...]] = {
    "durations": (duration_form,),
    "throughputs": (throughput_form,),
    "durations and throughputs": (duration_form, throughput_form),
    "demands": (demand_form,),
    "open": (open_form,),
    "cores": (cores_form,),
}
