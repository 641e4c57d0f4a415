"""Offline interference models, one a file, fitted and judged on the same splits by benchmarks.predictor.

A new one is a class with ``name``, ``fit`` and ``slowdown`` (envs.offline.model.OfflineModel) and one line in ``models``.
"""

from __future__ import annotations

from collections.abc import Callable

from envs.offline.boosting import Boosting
from envs.offline.constant import Constant
from envs.offline.gpulet import GpuletLinear
from envs.offline.igniter import IgniterAnalytic
from envs.offline.model import OfflineModel
from envs.offline.ours import Form, Ours
from envs.offline.ridge import Ridge
from envs.offline.solo import Solo


def models(forms: tuple[Form, ...], boosting: bool = True) -> dict[str, Callable[[], OfflineModel]]:
    """Constructors of all models by name.

    Args:
        forms: columns of our own model for the device at hand. boosting: whether to list the one that needs scikit-learn.
    """
    out: dict[str, Callable[[], OfflineModel]] = {
        "solo": Solo,
        "constant": Constant,
        "gpulet-linear": GpuletLinear,
        "igniter": IgniterAnalytic,
        "ridge": Ridge,
    }
    if boosting:
        out["boosting"] = Boosting
    out["ours"] = lambda: Ours(forms)
    return out
