"""Expected count statistics of the twin's model (traces.twin.generator), which the fit inverts."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy.integrate import cumulative_trapezoid
from scipy.stats import gamma

from traces.twin.generator import TwinParameters

GRID_POINTS = 600
RENEWAL_POINTS = 200
RENEWAL_LENGTH = 30.0


def count_variance(parameters: TwinParameters, window_ms: np.ndarray) -> np.ndarray:
    """Variance of the number of arrivals in windows of the given lengths.

    By the law of total variance it is that of the renewal process at the mean operational time, plus the variance of
    the operational time, 2 rate^2 * integral_0^T (T - u) c(u) du, with c(u) = exp(sum_k s_k^2 e^(-u / tau_k)) - 1 the
    relative autocovariance of the rate.
    """
    window = np.asarray(window_ms, dtype=np.float64)
    grid = np.concatenate([[0.0], np.geomspace(window.min() * 1e-3, window.max(), GRID_POINTS)])
    exponent = np.zeros_like(grid)
    for tau_ms, variance in zip(parameters.tau_ms, parameters.variance):
        exponent += variance * np.exp(-grid / tau_ms)
    covariance = np.expm1(exponent)
    plain = cumulative_trapezoid(covariance, grid, initial=0)
    weighted = cumulative_trapezoid(covariance * grid, grid, initial=0)
    double = window * np.interp(window, grid, plain) - np.interp(window, grid, weighted)
    rate_per_ms = parameters.rate_rps / 1e3
    return renewal_variance(parameters.cv, rate_per_ms * window) + 2 * rate_per_ms**2 * double


def expected_dispersion(parameters: TwinParameters, windows_ms: np.ndarray, duration_ms: float) -> np.ndarray:
    """Expected index of dispersion of counts as a record of `duration_ms` would show it.

    A finite record misses the part of the variance that moves its own mean: with n windows of variance V(T), the
    expected sample variance is n / (n - 1) * (V(T) - V(nT) / n^2).
    """
    windows = np.asarray(windows_ms, dtype=np.float64)
    number = np.floor(duration_ms / windows)
    variance = count_variance(parameters, windows)
    whole = count_variance(parameters, number * windows)
    sample = number / (number - 1) * (variance - whole / number**2)
    return sample / (parameters.rate_rps / 1e3 * windows)


def expected_autocorrelation(
    parameters: TwinParameters, window_ms: float, lags: np.ndarray, duration_ms: float
) -> np.ndarray:
    """Expected autocorrelation of counts per window at each lag (at least 1), as such a record would show it."""
    lag = np.asarray(lags, dtype=np.float64)
    number = np.floor(duration_ms / window_ms)
    lengths = np.concatenate([lag + 1, lag, np.maximum(lag - 1, 1e-9), [1.0, number]]) * window_ms
    variance = count_variance(parameters, lengths)
    above, here, below = np.split(variance[: 3 * len(lag)], 3)
    lost = variance[-1] / number**2
    return ((above - 2 * here + np.where(lag > 1, below, 0.0)) / 2 - lost) / (variance[-2] - lost)


def renewal_variance(cv: float, length: np.ndarray) -> np.ndarray:
    """Variance of the count of a stationary renewal process of unit rate with Gamma gaps, over each length.

    It is x + 2 * integral_0^x (x - u) (h(u) - 1) du with h the renewal density, and becomes linear with slope cv^2
    (Cox, Renewal Theory, 1962, sections 4.5 and 4.6).
    """
    lengths = np.asarray(length, dtype=np.float64)
    if abs(cv - 1) < 1e-9:
        return lengths.copy()
    grid, variance = _renewal_table(float(cv))
    inside = np.interp(lengths, grid, variance)
    return np.where(lengths <= grid[-1], inside, variance[-1] + cv**2 * (lengths - grid[-1]))


@lru_cache(maxsize=64)
def _renewal_table(cv: float) -> tuple[np.ndarray, np.ndarray]:
    shape = 1 / cv**2
    grid = np.concatenate([[0.0], np.geomspace(1e-4, RENEWAL_LENGTH, RENEWAL_POINTS)])
    most = int(RENEWAL_LENGTH + 10 * max(cv, 1.0) * np.sqrt(RENEWAL_LENGTH)) + 10
    # Integrals come from distribution functions, not densities: those are infinite at 0 when cv is above 1.
    order = np.arange(1, most)[:, None] * shape
    plain = gamma.cdf(grid, order, scale=1 / shape).sum(axis=0)
    first_moment = gamma.cdf(grid, order + 1, scale=1 / shape) * (order / shape)
    excess = grid * plain - first_moment.sum(axis=0) - grid**2 / 2
    return grid, grid + 2 * excess
