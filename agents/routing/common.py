"""Small compiled pieces that several routers share.

A request may go to each replica that is up and has its model in memory; where none has, to each that is up.
"""

from __future__ import annotations

from envs.scheduling import rng
from envs.scheduling.jit import njit


@njit
def eligible(ledger, door, model):
    """Number of replicas that a request for a model may go to, and whether these have the model in memory."""
    n_up = 0
    n_here = 0
    for replica in range(ledger.replica.shape[1]):
        if ledger.replica[door, replica].up == 1:
            n_up += 1
            n_here += 1 if ledger.load_ms[door, replica, model] == 0.0 else 0
    return (n_here, True) if n_here > 0 else (n_up, False)


@njit
def may_get(ledger, door, replica, model, here):
    """Whether a replica is one of them; ``here`` is from `eligible`."""
    return ledger.replica[door, replica].up == 1 and (not here or ledger.load_ms[door, replica, model] == 0.0)


@njit
def nth(ledger, door, model, here, n):
    """Index of the n-th of them; -1 for none."""
    for replica in range(ledger.replica.shape[1]):
        if may_get(ledger, door, replica, model, here):
            if n == 0:
                return replica
            n -= 1
    return -1


@njit
def two_random(ledger, door, model, draw):
    """Two different replicas that a request for a model may go to; twice the same where there is one, (-1, -1) for none."""
    n, here = eligible(ledger, door, model)
    if n < 2:
        only = nth(ledger, door, model, here, 0)
        return only, only
    first = int(rng.uniform(draw, 0) * n)
    second = (first + 1 + int(rng.uniform(draw, 1) * (n - 1))) % n
    return nth(ledger, door, model, here, first), nth(ledger, door, model, here, second)
