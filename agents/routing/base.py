"""The router interface.

A router is one compiled function ``route(ledger, tables, door, request, draw) -> replica`` over a door's ledger: ``tables`` are
those of the profile, ``request`` is an ``envs.cluster.ledger.Routed``, ``draw`` a uint64 to draw random numbers from. It
returns the index of a replica that is up, or -1 where none is. It changes nothing, reads no clock and allocates nothing. The
simulated cluster and the live door call the same function.

To add one: write a file in agents/routing with a ``route`` and its ``KIND``, and add one line to agents/routing/registry.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numba import types

from envs.cluster.ledger import Ledger, Routed
from envs.scheduling.jit import bind
from envs.scheduling.state import Tables


@dataclass(frozen=True)
class RouterKind:
    """A registered router.

    Attributes:
        name: in flags and reports.
        route: the compiled function.
        source: where it is described.
    """

    name: str
    route: Callable[..., int]
    source: str

    def bound(self, ledger: Ledger, tables: Tables) -> Callable[..., int]:
        """The function for a ledger and tables of this shape, as ``envs.scheduling.jit.bind`` binds it."""
        return bind(self.route, ledger, tables, 0, Routed(0.0, 0, 0, 0.0), np.uint64(0))


def pointer_type(kind: RouterKind, ledger: Ledger, tables: Tables) -> Any:
    """Type of the function as compiled loops take it, compiled; all routers have the same."""
    request = types.NamedTuple((types.float64, types.int64, types.int64, types.float64), Routed)
    own = (numba.typeof(ledger), numba.typeof(tables), types.int64, request, types.uint64)
    kind.route.compile(own)  # type: ignore[attr-defined]
    return types.FunctionType(types.int64(*own))
