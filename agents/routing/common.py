"""Small compiled pieces that several routers share."""

from __future__ import annotations

from envs.scheduling import rng
from envs.scheduling.jit import njit


@njit
def replicas_up(ledger, door):
    """Number of replicas that are up."""
    n = 0
    for replica in range(ledger.replica.shape[1]):
        n += ledger.replica[door, replica].up
    return n


@njit
def nth_up(ledger, door, n):
    """Index of the n-th replica that is up."""
    for replica in range(ledger.replica.shape[1]):
        if ledger.replica[door, replica].up == 1:
            if n == 0:
                return replica
            n -= 1
    return -1


@njit
def two_random(ledger, door, draw):
    """Two different replicas that are up; twice the same where there is one, (-1, -1) where there is none."""
    n = replicas_up(ledger, door)
    if n < 2:
        only = nth_up(ledger, door, 0)
        return only, only
    first = int(rng.uniform(draw, 0) * n)
    second = (first + 1 + int(rng.uniform(draw, 1) * (n - 1))) % n
    return nth_up(ledger, door, first), nth_up(ledger, door, second)
