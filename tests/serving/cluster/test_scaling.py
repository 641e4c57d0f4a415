"""The number of replicas follows the violations that quotes foretell."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.cluster.scaling import FEW, Scaler, Scaling, replicas_wanted

SCALING = Scaling(least=2, most=16, target=0.02, calm_s=60.0)


@pytest.mark.parametrize(
    ("replicas", "violations", "calm_s", "wanted"),
    [
        (4, 0.02, 0.0, 4),  # at the target
        (4, 0.021, 0.0, 5),  # any more is a replica more
        (8, 0.2, 0.0, 10),  # a fifth of the load lacks a fourth of what there is
        (4, 0.9, 0.0, 8),  # at most twice as many
        (12, 1.0, 0.0, 16),  # not above the limit
        (4, 0.0, 59.0, 4),
        (4, 0.0, 60.0, 3),  # given up one by one
        (2, 0.0, 600.0, 2),  # not below the limit
    ],
)
def test_replicas_wanted(replicas: int, violations: float, calm_s: float, wanted: int) -> None:
    assert replicas_wanted(SCALING, replicas, violations, calm_s) == wanted


@given(st.integers(2, 16), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1000))
def test_more_violations_never_want_fewer_replicas(replicas: int, one: float, other: float, calm_s: float) -> None:
    low, high = sorted((one, other))
    few, many = (replicas_wanted(SCALING, replicas, share, calm_s) for share in (low, high))
    assert 2 <= few <= many <= 16 and many <= 2 * replicas


def offer(scaler: Scaler, probability: float, calls: int = 10 * FEW) -> None:
    for _ in range(calls):
        scaler.add(probability)


def test_a_scaler_grows_under_load_waits_for_what_it_started_and_shrinks_when_calm() -> None:
    scaler = Scaler(SCALING, 0.0)
    offer(scaler, 0.6)
    assert scaler.wanted(1.0, 2, 2) == 4
    offer(scaler, 0.6)
    assert scaler.wanted(2.0, 4, 2) == 4  # two of them start
    offer(scaler, 1.0)
    assert scaler.wanted(30.0, 4, 4) == 4
    offer(scaler, 1.0)
    assert scaler.wanted(61.0, 4, 4) == 4  # calm since 2 s only
    assert scaler.wanted(63.0, 4, 4) == 3
    assert scaler.wanted(64.0, 3, 3) == 3  # one at a time
    assert scaler.wanted(124.0, 3, 3) == 2


def test_a_single_late_call_is_no_reason_to_grow() -> None:
    scaler = Scaler(Scaling(1, 8, target=0.06), 0.0)
    offer(scaler, 0.0, 1)
    assert scaler.wanted(1.0, 2, 2) == 2
