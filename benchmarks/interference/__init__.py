"""Offline interference models, fitted and judged on the same splits by benchmarks.predictor; data sets are in ``loaders``.

A new model is a class with ``fit`` and ``slowdown`` (benchmarks.interference.model.OfflineModel) and one line in ``models``.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.interference.baselines import Boosting, Constant, GpuletLinear, Ridge, Solo
from benchmarks.interference.model import OfflineModel
from benchmarks.interference.nested import Chosen


def models(inner_folds: int = 4, boosting: bool = True) -> dict[str, Callable[[], OfflineModel]]:
    """Constructors of all models by name.

    Args:
        inner_folds: of the training data, on which the form of ours is chosen.
        boosting: whether scikit-learn is there.
    """
    compared: dict[str, Callable[[], OfflineModel]] = {
        "solo": Solo,
        "constant": Constant,
        "gpulet-linear": GpuletLinear,
        "ridge": Ridge,
    }
    return compared | ({"boosting": Boosting} if boosting else {}) | {"ours": lambda: Chosen(inner_folds)}
