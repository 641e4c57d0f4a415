"""Arrival processes. Each returns sorted float64 times in ms, in [0, duration_ms)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from traces.errors import InputError


def poisson(rate_rps: float, duration_ms: float, rng: np.random.Generator) -> np.ndarray:
    """Poisson arrivals at a constant rate; the mildest kind of traffic from many independent users."""
    _positive(duration_ms=duration_ms)
    _not_negative(rate_rps=rate_rps)
    # Given their number, arrivals of a Poisson process are independent and uniform.
    count = rng.poisson(rate_rps * duration_ms / 1e3)
    return np.sort(rng.random(count) * duration_ms)


def gamma_renewal(rate_rps: float, duration_ms: float, cv: float, rng: np.random.Generator) -> np.ndarray:
    """Arrivals whose gaps are independent Gamma variables with coefficient of variation `cv`.

    cv = 1 is Poisson, below 1 more regular, above 1 bursty. The process is stationary: time 0 falls at a random place
    of a gap, so the expected number of arrivals is rate times duration exactly (Cox, Renewal Theory, 1962, ch. 5).
    """
    _positive(duration_ms=duration_ms, cv=cv)
    _not_negative(rate_rps=rate_rps)
    if rate_rps == 0:
        return np.empty(0)
    scale_ms = 1e3 / rate_rps
    return unit_gamma_renewal(duration_ms / scale_ms, cv, rng) * scale_ms


def unit_gamma_renewal(length: float, cv: float, rng: np.random.Generator) -> np.ndarray:
    """Stationary renewal points of mean gap 1 in [0, length), gaps Gamma with coefficient of variation `cv`."""
    shape = 1.0 / cv**2
    # The gap that covers time 0 is length-biased, which for a Gamma of shape k is a Gamma of shape k + 1.
    last = float(rng.random() * rng.gamma(shape + 1.0) / shape)
    parts = [np.array([last])]
    while last < length:
        missing = length - last
        gaps = rng.gamma(shape, 1.0 / shape, size=int(missing + 4.0 * max(cv, 1.0) * np.sqrt(missing)) + 16)
        parts.append(last + np.cumsum(gaps))
        last = float(parts[-1][-1])
    points = np.concatenate(parts)
    return points[: np.searchsorted(points, length, side="left")]


def mmpp(
    rates_rps: Sequence[float], sojourns_ms: Sequence[float], duration_ms: float, rng: np.random.Generator
) -> np.ndarray:
    """Markov-modulated Poisson arrivals: a hidden state sets the rate and changes at random.

    Args:
        rates_rps: arrival rate in each state.
        sojourns_ms: mean time in each state (exponential); the next state is any other one, equally likely. So the
            share of time in a state is its sojourn over the sum, and the mean rate is the average weighted by sojourn.
        duration_ms: length; the first state is drawn from those shares, so the process is stationary.
        rng: source of randomness.
    """
    rates = np.asarray(rates_rps, dtype=np.float64)
    sojourns = np.asarray(sojourns_ms, dtype=np.float64)
    _positive(duration_ms=duration_ms)
    if rates.ndim != 1 or rates.shape != sojourns.shape or len(rates) == 0:
        raise InputError(f"mmpp: {rates.size} rates and {sojourns.size} sojourns; expected one of each per state")
    if not np.all(np.isfinite(rates) & (rates >= 0)) or not np.all(np.isfinite(sojourns) & (sojourns > 0)):
        raise InputError("mmpp: rates must be at least 0, sojourns above 0")
    if len(rates) == 1:
        return poisson(float(rates[0]), duration_ms, rng)
    state = int(rng.choice(len(rates), p=sojourns / sojourns.sum()))
    edges, levels = [0.0], []
    while edges[-1] < duration_ms:
        levels.append(rates[state])
        edges.append(min(edges[-1] + rng.exponential(sojourns[state]), duration_ms))
        state = (state + 1 + int(rng.integers(len(rates) - 1))) % len(rates)
    return piecewise(np.array(edges), np.array(levels), rng)


def diurnal(
    rate_rps: float,
    duration_ms: float,
    rng: np.random.Generator,
    amplitude: float = 0.5,
    period_ms: float = 86_400_000.0,
    phase: float = 0.0,
) -> np.ndarray:
    """Poisson arrivals with rate rate_rps * (1 + amplitude * sin(2 pi (t / period_ms + phase))), by thinning.

    Args:
        rate_rps: mean over a whole period.
        duration_ms: length.
        rng: source of randomness.
        amplitude: relative swing, in [0, 1].
        period_ms: length of a cycle; a day by default, shorter to see several in a short run.
        phase: where in the cycle time 0 is, as a fraction of the period.

    Source: thinning, Lewis and Shedler, Naval Research Logistics Quarterly 26 (1979).
    """
    _positive(period_ms=period_ms)
    if not 0 <= amplitude <= 1:
        raise InputError(f"amplitude: {amplitude}; must be from 0 to 1")
    times = poisson(rate_rps * (1 + amplitude), duration_ms, rng)
    relative = 1 + amplitude * np.sin(2 * np.pi * (times / period_ms + phase))
    return times[rng.random(len(times)) * (1 + amplitude) < relative]


def piecewise(edges_ms: np.ndarray, rates_rps: np.ndarray, rng: np.random.Generator, cv: float = 1.0) -> np.ndarray:
    """Arrivals whose rate is constant between edges: unit-rate renewal points, time-changed by the integrated rate.

    Args:
        edges_ms: (N + 1,) increasing, the first is 0.
        rates_rps: (N,) rate between edges.
        rng: source of randomness.
        cv: coefficient of variation of the gaps in operational time; 1 gives a Poisson process.
    """
    integral = np.concatenate([[0.0], np.cumsum(np.diff(edges_ms) * rates_rps / 1e3)])
    points = unit_gamma_renewal(float(integral[-1]), cv, rng)
    # Found by search rather than np.interp alone: spans of zero rate make the integral flat, where no point falls.
    span = np.clip(np.searchsorted(integral, points, side="right") - 1, 0, len(rates_rps) - 1)
    inside = edges_ms[span] + (points - integral[span]) / np.maximum(rates_rps[span], 1e-300) * 1e3
    return np.minimum(inside, np.nextafter(edges_ms[span + 1], 0))


def window_counts(arrival_ms: np.ndarray, window_ms: float, duration_ms: float) -> np.ndarray:
    """Arrivals in each whole window of `window_ms` from 0; what is left at the end is not counted. int64 (n,)."""
    _positive(window_ms=window_ms, duration_ms=duration_ms)
    # A hair is added so that a duration which is a multiple but for rounding keeps its last window.
    windows = int(duration_ms / window_ms + 1e-9)
    index = (np.asarray(arrival_ms) / window_ms).astype(np.int64)
    return np.bincount(index[index < windows], minlength=windows)


def dispersion(arrival_ms: np.ndarray, windows_ms: Sequence[float], duration_ms: float) -> np.ndarray:
    """Index of dispersion of counts (variance over mean) for each window; 1 at every window for Poisson.

    Returns:
        float64 (len(windows_ms),); nan where fewer than two whole windows fit or none holds an arrival.

    Source: Gusella, IEEE J. Selected Areas in Communications 9(2) (1991).
    """
    result = np.full(len(windows_ms), np.nan)
    for number, window_ms in enumerate(windows_ms):
        counts = window_counts(arrival_ms, window_ms, duration_ms)
        if len(counts) > 1 and counts.any():
            result[number] = counts.var(ddof=1) / counts.mean()
    return result


def autocorrelation(arrival_ms: np.ndarray, window_ms: float, lags: Sequence[int], duration_ms: float) -> np.ndarray:
    """Autocorrelation of the counts per window at each lag (in windows); nan where the record is too short."""
    counts = window_counts(arrival_ms, window_ms, duration_ms).astype(np.float64)
    result = np.full(len(lags), np.nan)
    if len(counts) < 2 or counts.var() == 0:
        return result
    centred = counts - counts.mean()
    for number, lag in enumerate(lags):
        if 0 <= lag < len(counts) - 1:
            result[number] = np.mean(centred[: len(counts) - lag] * centred[lag:]) / np.mean(centred**2)
    return result


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not (np.isfinite(value) and value > 0):
            raise InputError(f"{name}: {value}; must be above 0")


def _not_negative(**values: float) -> None:
    for name, value in values.items():
        if not (np.isfinite(value) and value >= 0):
            raise InputError(f"{name}: {value}; must be at least 0")
