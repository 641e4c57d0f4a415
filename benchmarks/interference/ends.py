"""Models of the ends of co-runs that begin together (envs.profiles.abacus), fitted to ends alone.

Slowdowns share one fit (benchmarks.interference.end_fit) and one integration, so that they differ in the slowdown only. Boosting
and the network know no integration: they give the log of the end over the longest time alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from benchmarks.interference.end_fit import SlowdownForm, fit_ends
from benchmarks.interference.nested import NO_FOLD, choose, even_folds
from envs.profiles.abacus import MODELS, N_LAYERS, CoRuns
from envs.profiles.two_paths import EPS, LayerTimes, beside, slower_path

PLACES = 3  # of models that a regressor has columns for


class EndModel(Protocol):
    """A model of ends."""

    def fit(self, runs: CoRuns) -> EndModel:
        """Fit to co-runs. Returns itself."""
        ...

    def end_ms(self, runs: CoRuns) -> np.ndarray:
        """Predicted time (N,) until all have ended."""
        ...


def _alone(theta: np.ndarray, share: np.ndarray, running: np.ndarray) -> np.ndarray:
    return np.ones(share.shape)


def _by_number(theta: np.ndarray, share: np.ndarray, running: np.ndarray) -> np.ndarray:
    """The same for every batch; each co-runner costs as much as the first, since triples may be unknown."""
    return np.maximum(1.0 + theta[0] * beside(running.astype(float)), 1.0)


def _gpulet(theta: np.ndarray, share: np.ndarray, running: np.ndarray) -> np.ndarray:
    """GPUlet's form: a constant, and linear in the use of the device by a batch and by the others."""
    linear = theta[0] + theta[1] * share + theta[2] * beside(share * running)
    return np.where(beside(running.astype(float)) > 0, np.maximum(linear, 1.0), 1.0)


def _ridge(theta: np.ndarray, share: np.ndarray, running: np.ndarray) -> np.ndarray:
    """Linear in the number of the others, the shares of both sides, and their product."""
    n, others = beside(running.astype(float)), beside(share * running)
    columns = (n, share * (n > 0), others, share * others)
    return np.maximum(1.0 + sum(weight * x for weight, x in zip(theta, columns, strict=True)), 1.0)


def _both_paths(theta: np.ndarray, share: np.ndarray, running: np.ndarray) -> np.ndarray:
    """What the others cost the host's part and the device's part adds up."""
    device, host = theta
    cost = (1.0 - share) * host * beside(running.astype(float)) + share * device * beside(share * running)
    return np.maximum(1.0 + cost, 1.0)


def _device_path(theta: np.ndarray, share: np.ndarray, running: np.ndarray) -> np.ndarray:
    """Only the device is contended, and only where it is the bottleneck."""
    return np.maximum(share * (1.0 + theta[0] * beside(share * running)), 1.0)


# The candidates of our model, chosen from as those of benchmarks.interference.forms are.
CANDIDATES = {
    "the slower path": SlowdownForm(slower_path, (1.2, 0.05)),
    "both paths": SlowdownForm(_both_paths, (1.0, 0.05)),
    "the device's path": SlowdownForm(_device_path, (1.2,)),
}
BASELINES = {
    "solo": SlowdownForm(_alone, ()),
    "constant": SlowdownForm(_by_number, (0.2,)),
    "gpulet": SlowdownForm(_gpulet, (1.0, 0.2, 0.2)),
    "ridge": SlowdownForm(_ridge, (0.05, 0.05, 0.1, 0.3)),
}


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


class Ours:
    """The candidate that folds of the training co-runs choose, by sets of models.

    Args:
        layers: times alone by layer. rows: drawn for each fit. folds: of the choice.
    """

    def __init__(self, layers: LayerTimes, rows: int, folds: int) -> None:
        self.layers, self.rows, self.folds = layers, rows, folds
        self.form = ""

    def fit(self, runs: CoRuns) -> Ours:
        """Choose the form, then fit it to all rows."""

        def log_error(name: str, held: np.ndarray) -> np.ndarray:
            judged = runs.take(held)
            fitted = Slowed(CANDIDATES[name], self.layers, self.rows).fit(runs.take(~held))
            return np.log(fitted.end_ms(judged) / judged.ms)

        self.form = choose(CANDIDATES, even_folds(sets(runs), self.folds), log_error)
        self.chosen = Slowed(CANDIDATES[self.form], self.layers, self.rows).fit(runs)
        return self

    def end_ms(self, runs: CoRuns) -> np.ndarray:
        """Predicted time (N,) until all have ended."""
        return self.chosen.end_ms(runs)


def sets(runs: CoRuns) -> np.ndarray:
    """(N,) number of the set of models of each co-run, NO_FOLD where one runs alone: these are always trained on."""
    return np.where(runs.running.sum(axis=1) > 1, runs.pair, NO_FOLD)


class Regressor:
    """Log of the end over the longest time alone, from a scikit-learn regressor (the extra ``bench``).

    It is trained on every order of the models of a row, one order for each row and place, since the order says nothing.

    Args:
        layers: times alone by layer. rows: drawn for the fit. make: returns the regressor. columns: of co-runs whose places
            are filled up to PLACES, (N, C).
    """

    def __init__(
        self,
        layers: LayerTimes,
        rows: int,
        make: Callable[[], Any],
        columns: Callable[[CoRuns, LayerTimes], np.ndarray],
    ) -> None:
        self.layers, self.rows, self.make, self.columns = layers, rows, make, columns

    def fit(self, runs: CoRuns) -> Regressor:
        """Fit to some rows, in every rotation of the places."""
        runs = runs.take(np.random.default_rng(0).permutation(len(runs))[: self.rows])
        target = np.log(runs.ms / self._longest(runs))
        x = [self.columns(rotated(runs, by), self.layers) for by in range(runs.model.shape[1])]
        self.regressor = self.make().fit(np.concatenate(x), np.tile(target, len(x)))
        return self

    def end_ms(self, runs: CoRuns) -> np.ndarray:
        """Predicted time (N,) until all have ended."""
        return np.exp(self.regressor.predict(self.columns(runs, self.layers))) * self._longest(runs)

    def _longest(self, runs: CoRuns) -> np.ndarray:
        return self.layers.sums(runs)[0].max(axis=1)


def rotated(runs: CoRuns, by: int) -> CoRuns:
    """The same co-runs with the models in other places."""
    arrays = {name: np.roll(getattr(runs, name), by, axis=1) for name in ("model", "first", "end", "items")}
    return CoRuns(**arrays, ms=runs.ms)


def demand_columns(runs: CoRuns, layers: LayerTimes) -> np.ndarray:
    """For each place by time alone, longest first: the log of this, the device's share, the model; and sums over all."""
    time, device = layers.sums(runs)
    share = device / np.maximum(time, EPS)
    order = np.argsort(-time, axis=1)
    sorted_ = [np.take_along_axis(x, order, axis=1) for x in (np.log(np.maximum(time, 0.01)), share, runs.model)]
    total = time.sum(axis=1)
    sums = np.column_stack([total / time.max(axis=1), device.sum(axis=1) / time.max(axis=1), runs.running.sum(axis=1)])
    return np.column_stack([*(_filled(x) for x in sorted_), sums])


def layer_columns(runs: CoRuns, layers: LayerTimes) -> np.ndarray:
    """What Abacus' network reads: for each place which model it is, its first and last layer, and its items."""
    on = runs.running
    which = [_filled((runs.model == m) & on) for m in range(len(MODELS))]
    numbers = [_filled(on * x) for x in (runs.first / N_LAYERS, runs.end / N_LAYERS, np.log2(runs.items) / 5.0)]
    return np.column_stack([*which, *numbers]).astype(float)


def _filled(x: np.ndarray) -> np.ndarray:
    return np.pad(x.astype(float), ((0, 0), (0, PLACES - x.shape[1])))


def _boosting() -> Any:
    from sklearn.ensemble import HistGradientBoostingRegressor

    return HistGradientBoostingRegressor(
        max_iter=150, learning_rate=0.1, max_leaf_nodes=31, min_samples_leaf=10, random_state=0
    )


def _network() -> Any:
    from sklearn.neural_network import MLPRegressor

    return MLPRegressor(
        hidden_layer_sizes=(64, 64), learning_rate_init=3e-3, batch_size=128, max_iter=60, random_state=0
    )


def end_models(layers: LayerTimes, rows: int, folds: int, regressors: bool) -> dict[str, Callable[[], EndModel]]:
    """Constructors of all models by name.

    Args:
        layers: times alone by layer. rows: drawn for each fit. folds: of the choice of our form.
        regressors: whether scikit-learn is there.
    """

    def slowed(form: SlowdownForm) -> Callable[[], EndModel]:
        return lambda: Slowed(form, layers, rows)

    made: dict[str, Callable[[], EndModel]] = {"ours": lambda: Ours(layers, rows, folds)}
    made |= {name: slowed(form) for name, form in BASELINES.items()}
    if regressors:
        made["boosting"] = lambda: Regressor(layers, rows, _boosting, demand_columns)
        made["network"] = lambda: Regressor(layers, rows, _network, layer_columns)
    return made
