"""Arrival processes against what theory says of them, and the statistics helpers against direct computation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces import arrivals
from traces.errors import InputError

PROCESSES: dict[str, Callable[[float, float, np.random.Generator], np.ndarray]] = {
    "poisson": arrivals.poisson,
    "gamma 0.4": lambda rate, length, rng: arrivals.gamma_renewal(rate, length, 0.4, rng),
    "gamma 2.5": lambda rate, length, rng: arrivals.gamma_renewal(rate, length, 2.5, rng),
    "mmpp": lambda rate, length, rng: arrivals.mmpp([0.0, 2 * rate, rate], [300.0, 300.0, 100.0], length, rng),
    "diurnal": lambda rate, length, rng: arrivals.diurnal(rate, length, rng, amplitude=0.8, period_ms=length / 4),
}


@pytest.mark.parametrize("name", PROCESSES)
@settings(deadline=None, max_examples=25)
@given(rate=st.floats(0.1, 2000), length=st.floats(1, 3000), seed=st.integers(0, 2**32))
def test_times_are_sorted_within_the_duration_and_seeded(name: str, rate: float, length: float, seed: int) -> None:
    times = PROCESSES[name](rate, length, np.random.default_rng(seed))
    assert times.dtype == np.float64 and times.ndim == 1
    assert np.all(np.diff(times) >= 0) and np.all((times >= 0) & (times < length))
    assert np.array_equal(times, PROCESSES[name](rate, length, np.random.default_rng(seed)))


@pytest.mark.parametrize("name", PROCESSES)
def test_the_mean_rate_is_the_given_one(name: str) -> None:
    rng = np.random.default_rng(3)
    counts = [len(PROCESSES[name](50.0, 4000.0, rng)) for _ in range(300)]
    error = np.std(counts) / np.sqrt(len(counts))
    assert abs(np.mean(counts) - 200.0) < 4 * error


def test_a_short_renewal_run_has_no_bias_from_its_start() -> None:
    # A run that began with a full gap, or with an arrival, would miss the expected half arrival by far at this cv.
    rng = np.random.default_rng(4)
    counts = [len(arrivals.gamma_renewal(10.0, 50.0, 3.0, rng)) for _ in range(20_000)]
    assert np.mean(counts) == pytest.approx(0.5, abs=4 * np.std(counts) / np.sqrt(20_000))


@pytest.mark.parametrize("cv", [0.3, 1.0, 2.0])
def test_gamma_gaps_have_the_given_coefficient_of_variation(cv: float) -> None:
    gaps = np.diff(arrivals.gamma_renewal(1000.0, 200_000.0, cv, np.random.default_rng(5)))
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.03)


def test_dispersion_is_one_for_poisson_and_tends_to_cv_squared_for_renewal() -> None:
    rng = np.random.default_rng(6)
    poisson = arrivals.poisson(100.0, 1e6, rng)
    assert arrivals.dispersion(poisson, [10, 100, 1000], 1e6) == pytest.approx([1, 1, 1], abs=0.12)
    bursty = arrivals.gamma_renewal(100.0, 1e6, 2.0, rng)
    assert arrivals.dispersion(bursty, [2000.0], 1e6)[0] == pytest.approx(4.0, rel=0.2)


def test_dispersion_of_a_two_state_process_is_the_closed_form() -> None:
    # Two states, symmetric: autocovariance of the rate ((r1 - r0) / 2)^2 e^(-2u/s), so for windows of length T
    # dispersion = 1 + 2 * amplitude^2 * tau / mean * (1 - (1 - e^(-T/tau)) tau / T), with tau = s / 2.
    low, high, sojourn_s, window_s = 20.0, 180.0, 0.4, 1.0
    times = arrivals.mmpp([low, high], [sojourn_s * 1e3] * 2, 2e6, np.random.default_rng(7))
    mean, amplitude, tau = (low + high) / 2, (high - low) / 2, sojourn_s / 2
    expected = 1 + 2 * amplitude**2 * tau / mean * (1 - (1 - np.exp(-window_s / tau)) * tau / window_s)
    assert arrivals.dispersion(times, [window_s * 1e3], 2e6)[0] == pytest.approx(expected, rel=0.1)


def test_diurnal_rate_rises_and_falls_with_the_period() -> None:
    times = arrivals.diurnal(100.0, 1e6, np.random.default_rng(8), amplitude=0.6, period_ms=1e5)
    phase = np.histogram(times % 1e5, bins=10, range=(0, 1e5))[0] / 100 / 100
    middle = (np.arange(10) + 0.5) / 10
    assert phase == pytest.approx(1 + 0.6 * np.sin(2 * np.pi * middle), abs=0.08)


def test_a_span_without_rate_holds_no_arrival() -> None:
    edges, rates = np.array([0.0, 100.0, 500.0, 600.0]), np.array([500.0, 0.0, 500.0])
    for seed in range(20):
        times = arrivals.piecewise(edges, rates, np.random.default_rng(seed))
        assert not np.any((times >= 100) & (times < 500)) and len(times)


def test_counts_and_autocorrelation_by_hand() -> None:
    times = np.array([0.0, 1.0, 9.9, 10.0, 35.0, 41.0])
    assert arrivals.window_counts(times, 10.0, 44.0).tolist() == [3, 1, 0, 1]
    assert arrivals.dispersion(times, [10.0], 40.0)[0] == pytest.approx(np.var([3, 1, 0, 1], ddof=1) / 1.25)
    alternating = np.repeat(np.arange(0, 100, 2) * 10.0, 4)
    assert arrivals.autocorrelation(alternating, 10.0, [0, 1, 2, 500], 1000.0)[:3] == pytest.approx([1, -1, 1])
    assert np.isnan(arrivals.autocorrelation(alternating, 10.0, [500], 1000.0)[0])
    assert np.isnan(arrivals.dispersion(times, [50.0], 44.0)[0])


@given(times=st.lists(st.floats(0, 999.9), max_size=50), windows=st.integers(1, 20))
def test_whole_windows_count_every_arrival(times: list[float], windows: int) -> None:
    counts = arrivals.window_counts(np.sort(times), 1000.0 / windows, 1000.0)
    assert len(counts) == windows and counts.sum() == len(times)


@pytest.mark.parametrize(
    "call",
    [
        lambda rng: arrivals.poisson(-1, 10, rng),
        lambda rng: arrivals.poisson(1, 0, rng),
        lambda rng: arrivals.poisson(np.nan, 10, rng),
        lambda rng: arrivals.gamma_renewal(1, 10, 0, rng),
        lambda rng: arrivals.mmpp([1, 2], [1], 10, rng),
        lambda rng: arrivals.mmpp([1, 2], [1, 0], 10, rng),
        lambda rng: arrivals.mmpp([], [], 10, rng),
        lambda rng: arrivals.diurnal(1, 10, rng, amplitude=1.1),
    ],
)
def test_impossible_parameters_are_refused(call: Callable[[np.random.Generator], np.ndarray]) -> None:
    with pytest.raises(InputError, match="must be|expected"):
        call(np.random.default_rng(0))
