"""Ends of co-runs on an A100 that no model was fitted to: unseen pairs, unseen triples, and another device (a MIG slice)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.common.timing import one_thread
from benchmarks.interference.coruns import errors
from benchmarks.interference.end_forms import BASELINES
from benchmarks.interference.ends import Boosting, Corrected, EndModel, Network, Paths, Slowed, sets
from benchmarks.interference.nested import NO_FOLD, even_folds
from envs.profiles import abacus
from envs.profiles.abacus import CoRuns
from envs.profiles.two_paths import LayerTimes, drawn, fit_layers


class Effort(NamedTuple):
    """How thorough the study is.

    Attributes:
        rows: co-runs drawn for each fit of a slowdown.
        tree_rows: the same for boosted trees.
        network_rows: the same for the network.
        folds: in which sets are held out.
        inner: folds of each choice of our form.
    """

    rows: int
    tree_rows: int
    network_rows: int
    folds: int
    inner: int


QUICK, FULL = Effort(1500, 12_000, 1500, 3, 2), Effort(6000, 100_000, 30_000, 18, 3)


def fitted(runs: CoRuns, layers: LayerTimes, effort: Effort, regressors: bool) -> Iterator[tuple[str, EndModel]]:
    """All models by name, fitted to co-runs; those with ``regressors`` need scikit-learn."""
    for_trees = drawn(runs, effort.tree_rows)
    paths = Paths(layers, effort.rows, effort.inner).fit(runs)
    yield "ours", Corrected(paths).fit(for_trees) if regressors else paths
    yield "paths", paths
    for name, form in BASELINES.items():
        yield name, Slowed(form, layers, effort.rows).fit(runs)
    if regressors:
        yield "boosting", Boosting(layers).fit(for_trees)
        yield "network", Network(layers, effort.network_rows).fit(runs)


class Judged(NamedTuple):
    """Predictions for co-runs that were held out.

    Attributes:
        end_ms: (N,) by model.
        measured_ms: (N,).
        chosen: how often each form was chosen.
    """

    end_ms: dict[str, np.ndarray]
    measured_ms: np.ndarray
    chosen: dict[str, int]

    @property
    def errors(self) -> dict[str, dict[str, float]]:
        """Errors in percent by model."""
        return {name: errors(end, self.measured_ms) for name, end in self.end_ms.items()}


def judge(train: CoRuns, test: CoRuns, layers: LayerTimes, effort: Effort, regressors: bool) -> Judged:
    """Fit all models to some co-runs and predict others."""
    ends, chosen = {}, ""
    for name, model in fitted(train, layers, effort, regressors):
        ends[name] = model.end_ms(test)
        if isinstance(model, Paths):
            chosen = model.form
    return Judged(ends, test.ms, {chosen: 1})


def held_out(runs: CoRuns, effort: Effort, regressors: bool) -> Judged:
    """Hold out each set of models in turn, in folds; layers alone are fitted once, to rows that belong to no set."""
    layers = fit_layers(runs)
    fold = even_folds(sets(runs), effort.folds)
    parts = [
        judge(runs.take(fold != f), runs.take(fold == f), layers, effort, regressors)
        for f in np.unique(fold[fold != NO_FOLD])
    ]
    forms = [form for part in parts for form in part.chosen]
    return Judged(
        {name: np.concatenate([part.end_ms[name] for part in parts]) for name in parts[0].end_ms},
        np.concatenate([part.measured_ms for part in parts]),
        {form: forms.count(form) for form in forms},
    )


def study(folder: Path, effort: Effort, regressors: bool) -> dict[str, Judged]:
    """Unseen pairs, unseen triples from pairs alone, and unseen pairs on the MIG slice.

    Raises:
        InputError: a file or a column is missing.
    """
    pairs, triples, mig = (abacus.load(folder, name) for name in abacus.FILES)
    three = triples.take(triples.running.sum(axis=1) == 3)
    with one_thread():
        return {
            "pair": held_out(pairs, effort, regressors),
            "triple": judge(pairs, three, fit_layers(pairs), effort, regressors),
            "mig": held_out(mig, effort, regressors),
        }
