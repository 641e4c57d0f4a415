"""Which form of our model is taken: folds of the training data choose, so that no figure was chosen on what it is judged by."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from benchmarks.interference.coruns import CoRuns, finish
from benchmarks.interference.forms import CANDIDATES
from benchmarks.interference.ours import Ours

NO_FOLD = -1  # of what is trained on in every fold, and never judged


def choose(candidates: Iterable[str], fold: np.ndarray, log_error: Callable[[str, np.ndarray], np.ndarray]) -> str:
    """The candidate with the least mean absolute log error over all folds.

    Args:
        candidates: names.
        fold: (N,) fold of each row, NO_FOLD for those that none holds out.
        log_error: fits a candidate to all rows but those held out, (N,) bool, and returns the log errors of these.
    """
    held_out = [fold == f for f in np.unique(fold[fold != NO_FOLD])]
    means = {
        name: float(np.abs(np.concatenate([log_error(name, held) for held in held_out])).mean()) for name in candidates
    }
    return min(means, key=means.__getitem__)


def even_folds(group: np.ndarray, k: int) -> np.ndarray:
    """Fold (N,) of each row, whole groups at a time and as even in groups as can be; NO_FOLD where the group is that."""
    found, index = np.unique(group, return_inverse=True)
    return np.where(group == NO_FOLD, NO_FOLD, (index - int(NO_FOLD in found)) % k)


class Chosen:
    """Our offline model in the form that folds of its training data choose.

    Args:
        folds: so many at most; with fewer groups, each is held out alone.
    """

    def __init__(self, folds: int) -> None:
        self.folds = folds
        self.form = ""

    def fit(self, data: CoRuns, train: np.ndarray) -> Chosen:
        """Choose the form, then fit it to all training batches; batches that ran beside others are what counts."""
        judged = train & data.beside_others
        fold = even_folds(np.where(judged, data.group, NO_FOLD), self.folds)
        candidates = {name: Ours(forms) for name, forms in CANDIDATES.items()}

        def log_error(name: str, held: np.ndarray) -> np.ndarray:
            ours = candidates[name].fit(data, train & ~held)
            return np.log(finish(data, ours.slowdown(data)) / data.exec_ms)[held]

        self.form = choose(candidates, fold, log_error)
        self.fitted = candidates[self.form].fit(data, train)
        return self

    def slowdown(self, data: CoRuns) -> np.ndarray:
        """Slowdown of each piece (S,)."""
        return self.fitted.slowdown(data)
