"""The routers by name: one line for each."""

from __future__ import annotations

from agents.routing import join_shortest_queue, most_slack, power_of_two, quote, random, round_robin
from agents.routing.base import RouterKind
from traces.errors import InputError

_KINDS: dict[str, RouterKind] = {}


def register(kind: RouterKind) -> RouterKind:
    """Make a router known to every command that runs in this process."""
    if kind.name in _KINDS:
        raise ValueError(f"router {kind.name!r} is registered twice")
    _KINDS[kind.name] = kind
    return kind


for _kind in (
    random.KIND,
    round_robin.KIND,
    join_shortest_queue.KIND,
    power_of_two.KIND,
    most_slack.KIND,
    quote.KIND,
):
    register(_kind)


def routers() -> dict[str, RouterKind]:
    """All registered routers by name."""
    return dict(_KINDS)


def router(name: str) -> RouterKind:
    """A router by name.

    Raises:
        InputError: no such router.
    """
    if name not in _KINDS:
        raise InputError(f"unknown router {name!r}; known: {', '.join(sorted(_KINDS))}")
    return _KINDS[name]
