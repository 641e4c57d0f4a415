"""The heuristics by name: one line for each."""

from __future__ import annotations

from typing import Any

from agents.policies import (
    clipper,
    clockwork,
    cork,
    edf,
    fifo,
    gpulet,
    nexus,
    preempt,
    priority_edf,
    strait,
    symphony,
    triton,
)
from agents.policies.base import Policy, PolicyKind
from traces.errors import InputError

_KINDS: dict[str, PolicyKind] = {}


def register(kind: PolicyKind) -> PolicyKind:
    """Make a kind of policy known to every command that runs in this process."""
    if kind.name in _KINDS:
        raise ValueError(f"policy {kind.name!r} is registered twice")
    _KINDS[kind.name] = kind
    return kind


for _kind in (
    clipper.KIND,
    clockwork.KIND,
    cork.KIND,
    edf.KIND,
    fifo.KIND,
    gpulet.KIND,
    nexus.KIND,
    preempt.KIND,
    preempt.INSTANT_KIND,
    priority_edf.KIND,
    strait.KIND,
    symphony.KIND,
    triton.KIND,
):
    register(_kind)


def kinds() -> dict[str, PolicyKind]:
    """All registered kinds by name."""
    return dict(_KINDS)


def make_policy(name: str, n: int = 1, drop: float | None = None, **params: Any) -> Policy:
    """A policy by name, ready to decide for n schedulers; see ``Policy`` for the rest.

    Raises:
        InputError: no such policy, or no such parameter.
    """
    if name not in _KINDS:
        raise InputError(
            f"unknown policy {name!r}; known: {', '.join(sorted(_KINDS))}, or the path of a trained checkpoint"
        )
    return Policy(_KINDS[name], n, drop, **params)
