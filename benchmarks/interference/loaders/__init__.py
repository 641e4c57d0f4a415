"""Data sets of measured co-locations, one file each, all read into ``CoRuns``.

The public sets are not shipped: ``find`` says whether one is there. A loader takes its folder and raises InputError naming the
file, and the column or value that is wrong.
"""

from __future__ import annotations

import os
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[3]


def find(name: str, root: str | Path | None = None) -> Path | None:
    """Folder of a data set, or None where it is absent.

    Args:
        name: igniter_v100, disb or glet.
        root: folder that holds the sets; by default $STRAIT_DATA, then shared/data here or beside the project.
    """
    known = (os.environ.get("STRAIT_DATA"), PROJECT / "shared/data", PROJECT.parent / "shared/data")
    roots = [root] if root else [folder for folder in known if folder]
    return next((Path(folder) / name for folder in roots if (Path(folder) / name).is_dir()), None)
