"""Python's garbage collector in a process that serves from now on."""

from __future__ import annotations

import gc

YOUNG = 20_000  # objects made and not freed between two collections of the young ones; Python's 700 are too few for a server
RATIOS = (20, 50)


def settle() -> None:
    """Collect now, spare what stands from all later collections, and look for young garbage less often.

    A collection stops the world: over the models and compiled code that stay anyway it takes longer than many a request.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, *RATIOS)
