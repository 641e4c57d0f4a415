"""Small compiled pieces that several routers share."""

from __future__ import annotations

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
