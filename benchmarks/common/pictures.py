"""Pictures: panels in one style, written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from traces.files import atomic_path


def panels(rows: int, columns: int, size: tuple[float, float], **kwargs: Any) -> tuple[Any, np.ndarray]:
    """A figure of ``size`` inches and its panels (rows, columns)."""
    # Imported here: it takes longer than many a benchmark's other imports.
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="tight")
    return figure, figure.subplots(rows, columns, squeeze=False, **kwargs)


def save(figure: Any, path: Path | str) -> None:
    """Write the picture, without the upper and right line of each panel."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_yscale() == "linear":
            axes.set_ylim(bottom=0)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=100)
