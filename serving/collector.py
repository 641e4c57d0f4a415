"""Python's garbage collector in a process that serves from now on."""

from __future__ import annotations

import gc


def settle() -> None:
    """Collect now, and spare what stands from all later collections.

    A collection stops the world: over the models and compiled code that stay anyway it takes longer than many a request. It is
    not made rarer: a closed connection leaves its last request in a cycle, body and all, until the next one.
    """
    gc.collect()
    gc.freeze()
