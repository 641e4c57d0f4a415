"""Models of the ends of co-runs that begin together (envs.profiles.abacus), fitted to ends alone.

Slowdowns share one fit (benchmarks.interference.end_fit) and one integration, so that they differ in the slowdown only.
Boosting and the network know no integration: they give the log of the end over the longest time alone.
"""

from __future__ import annotations

import warnings
from typing import Any, Protocol

import numpy as np

from benchmarks.interference.end_fit import SlowdownForm, fit_ends
from benchmarks.interference.end_forms import CANDIDATES
from benchmarks.interference.nested import NO_FOLD, choose, even_folds
from envs.profiles.abacus import MODELS, N_LAYERS, CoRuns
from envs.profiles.two_paths import EPS, LayerTimes, drawn

PLACES = 3  # of models that the network has columns for
HIDDEN, EPOCHS = (64, 64), 60  # of the network
SHORT_MS = 0.01  # what is shorter counts as this


class EndModel(Protocol):
    """A model of ends."""

    def fit(self, runs: CoRuns) -> EndModel:
        """Fit to co-runs. Returns itself."""
        ...

    def end_ms(self, runs: CoRuns) -> np.ndarray:
        """Predicted time (N,) until all have ended."""
        ...


class Slowed:
    """A slowdown form with times alone.

    Args:
        form: of the slowdown. layers: times alone by layer. rows: drawn for the fit.
    """

    def __init__(self, form: SlowdownForm, layers: LayerTimes, rows: int) -> None:
        self.form, self.layers, self.rows = form, layers, rows

    def fit(self, runs: CoRuns) -> Slowed:
        """See benchmarks.interference.end_fit."""
        self.fitted = fit_ends(runs, self.layers, self.form, self.rows)
        return self

    def end_ms(self, runs: CoRuns) -> np.ndarray:
        """Predicted time (N,) until all have ended."""
        return self.fitted.end_ms(runs)


class Paths:
    """The slowdown that folds of the training co-runs choose, by sets of models.

    Args:
        layers: times alone by layer.
        rows: drawn for each fit.
        folds: of the choice.
    """

    def __init__(self, layers: LayerTimes, rows: int, folds: int) -> None:
        self.layers, self.rows, self.folds = layers, rows, folds
        self.form = ""

    def fit(self, runs: CoRuns) -> Paths:
        """Choose the form, then fit it to all rows."""

        def log_error(name: str, held: np.ndarray) -> np.ndarray:
            judged = runs.take(held)
            fitted = Slowed(CANDIDATES[name], self.layers, self.rows).fit(runs.take(~held))
            return np.log(fitted.end_ms(judged) / judged.ms)

        self.form = choose(CANDIDATES, even_folds(sets(runs), self.folds), log_error)
        self.fitted = fit_ends(runs, self.layers, CANDIDATES[self.form], self.rows)
        return self

    def end_ms(self, runs: CoRuns) -> np.ndarray:
        """Predicted time (N,) until all have ended."""
        return self.fitted.end_ms(runs)


class Corrected:
    """Our slowdown, and boosted trees on what it leaves.

    Args:
        paths: fitted to the same rows.
    """

    def __init__(self, paths: Paths) -> None:
        self.paths = paths

    def fit(self, runs: CoRuns) -> Corrected:
        """Fit the trees to the log of measured over predicted ends."""
        left = np.log(runs.ms / self.paths.end_ms(runs))
        self.trees = boosting().fit(demand_columns(runs, self.paths.fitted.layers), left)
        return self

    def end_ms(self, runs: CoRuns) -> np.ndarray:
        """Predicted time (N,) until all have ended."""
        return self.paths.end_ms(runs) * np.exp(self.trees.predict(demand_columns(runs, self.paths.fitted.layers)))


def sets(runs: CoRuns) -> np.ndarray:
    """(N,) number of the set of models of each co-run, NO_FOLD where one runs alone: these are always trained on."""
    return np.where(runs.running.sum(axis=1) > 1, runs.pair, NO_FOLD)


class Boosting:
    """Boosted trees for the log of the end over the longest time alone (scikit-learn, the extra ``bench``).

    Args:
        layers: times alone by layer.
    """

    def __init__(self, layers: LayerTimes) -> None:
        self.layers = layers

    def fit(self, runs: CoRuns) -> Boosting:
        """Fit to all rows."""
        self.trees = boosting().fit(demand_columns(runs, self.layers), np.log(runs.ms / longest(runs, self.layers)))
        return self

    def end_ms(self, runs: CoRuns) -> np.ndarray:
        """Predicted time (N,) until all have ended."""
        return np.exp(self.trees.predict(demand_columns(runs, self.layers))) * longest(runs, self.layers)


class Network:
    """A small network on what Abacus' reads, for the log of the end over the longest time alone (scikit-learn, ``bench``).

    It is trained on every rotation of the places of a row, since the order says nothing.

    Args:
        layers: times alone by layer.
        rows: drawn for the fit.
    """

    def __init__(self, layers: LayerTimes, rows: int) -> None:
        self.layers, self.rows = layers, rows

    def fit(self, runs: CoRuns) -> Network:
        """Fit to some rows."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.neural_network import MLPRegressor

        runs = drawn(runs, self.rows)
        target = np.log(runs.ms / longest(runs, self.layers))
        x = [layer_columns(rotated(runs, by)) for by in range(runs.model.shape[1])]
        self.network: Any = MLPRegressor(
            hidden_layer_sizes=HIDDEN, learning_rate_init=3e-3, batch_size=128, max_iter=EPOCHS, random_state=0
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the epochs are given
            self.network.fit(np.concatenate(x), np.tile(target, len(x)))
        return self

    def end_ms(self, runs: CoRuns) -> np.ndarray:
        """Predicted time (N,) until all have ended."""
        return np.exp(self.network.predict(layer_columns(runs))) * longest(runs, self.layers)


def boosting() -> Any:
    """Unfitted trees."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    return HistGradientBoostingRegressor(
        max_iter=150, learning_rate=0.1, max_leaf_nodes=31, min_samples_leaf=10, random_state=0
    )


def longest(runs: CoRuns, layers: LayerTimes) -> np.ndarray:
    """Longest time alone (N,) in ms."""
    return layers.sums(runs)[0].max(axis=1)


def rotated(runs: CoRuns, by: int) -> CoRuns:
    """The same co-runs with the models in other places."""
    arrays = {name: np.roll(getattr(runs, name), by, axis=1) for name in ("model", "first", "end", "items")}
    return CoRuns(**arrays, ms=runs.ms)


def demand_columns(runs: CoRuns, layers: LayerTimes) -> np.ndarray:
    """The two longest ranges: log of the time alone, the device's share, model and items; and sums over all that run.

    Columns do not depend on how many run, so that what was learned of pairs holds for triples.
    """
    time, device = layers.sums(runs)
    order = np.argsort(-time, axis=1)[:, :2]
    each = (
        np.log(np.maximum(time, SHORT_MS)),
        device / np.maximum(time, EPS),
        runs.model * runs.running,
        runs.items * runs.running,
    )
    most = time.max(axis=1)
    sums = (time.sum(axis=1) / most, device.sum(axis=1) / most)
    return np.column_stack([*(np.take_along_axis(x, order, axis=1) for x in each), *sums])


def layer_columns(runs: CoRuns) -> np.ndarray:
    """What Abacus' network reads: for each place which model it is, its first and last layer, and its items."""
    on = runs.running
    which = [(runs.model == m) & on for m in range(len(MODELS))]
    numbers = [on * x for x in (runs.first / N_LAYERS, runs.end / N_LAYERS, np.log2(runs.items) / 5.0)]
    return np.column_stack([np.pad(x, ((0, 0), (0, PLACES - x.shape[1]))) for x in (*which, *numbers)]).astype(float)
