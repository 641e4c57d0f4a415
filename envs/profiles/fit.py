"""From measurements to a profile; the command is ``python -m envs.fit``.

Fits two things apart. The truth of the simulator: log slowdown by number of batches on a core and by pair of (model, batch
size) on different cores, with a ridge that pulls pairs to what their demands explain, so that the work done over a batch's
pieces, ``sum dt / slowdown``, equals its solo time; what its residuals have in common with their neighbours in time is the
drift, the rest the noise. The prior of the scheduler's online predictor: the linear form of envs.scheduling.predictor on
the same pieces.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from envs.profiles.profile import Profile, counts_to, predictor_start
from envs.profiles.segments import Segments, cores_of, cut, time_slice_of
from envs.scheduling.predictor import MAX_SLOWDOWN, N_DEVICE_FEATURES, features
from envs.scheduling.state import N_DEMAND, N_FEATURES
from traces.errors import InputError
from traces.measurements import Measurements

# SciPy is imported where something is fitted: servers, which fit nothing, start sooner without.
if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

WEIGHT_BATCHES = 500  # batches that the online predictor's prior is worth
RESIDUALS = 512
DRIFT_BATCHES = 25  # batches on each side whose median residual is taken for the drift of the device
HUBER = 0.15  # log error beyond which a batch is a straggler
CORE_BATCHES = 5  # the same for one core: this many predict best what a batch between them took


def demands(measurements: Measurements, solo_ms: np.ndarray) -> np.ndarray:
    """Demand of each (model, batch size) on the device, as fractions of it: (M, B, 3).

    Compute: achieved over peak FLOP/s. Memory: bytes of weights and activations moved over time and peak bandwidth. Cache:
    the same bytes against 4 MiB, squashed to (0, 1), since the cache shared by all is not known to the profiler. Of a device
    whose peaks are not known (a simulated one), compute and memory count as 0.

    Args:
        measurements: the campaign. solo_ms: (M, B) solo execution time.
    """
    device = measurements.machine.device
    peak_flops, peak_bytes = device.peak_gflops * 1e9 or np.inf, device.peak_gbps * 1e9 or np.inf
    out = np.empty((*solo_ms.shape, N_DEMAND))
    for i, model in enumerate(measurements.machine.models):
        for j, size in enumerate(measurements.machine.batch_sizes):
            seconds = solo_ms[i, j] / 1e3
            moved = model.weight_bytes + size * model.activation_bytes_per_item
            out[i, j, 0] = size * model.flops_per_item / seconds / peak_flops
            out[i, j, 1] = moved / seconds / peak_bytes
            out[i, j, 2] = moved / (moved + 4 * 2**20)
    return np.clip(out, 0.0, 1.5)


def solo_arrays(measurements: Measurements) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Median solo copy-in, execution and copy-back times (M, B) in ms.

    Raises:
        InputError: a model and batch size that machine.json lists was never run solo.
    """
    machine = measurements.machine
    table = measurements.solo_table().set_index(["model", "batch_size"])
    shape = (len(machine.models), len(machine.batch_sizes))
    arrays = {c: np.empty(shape) for c in ("h2d_ms", "exec_ms", "d2h_ms")}
    for i, model in enumerate(machine.models):
        for j, size in enumerate(machine.batch_sizes):
            if (model.name, size) not in table.index:
                raise InputError(
                    f"measurements: model {model.name!r} at batch size {size} has no solo run; profile it again"
                )
            for column, array in arrays.items():
                array[i, j] = float(table[column][(model.name, size)])
    return arrays["h2d_ms"], arrays["exec_ms"], arrays["d2h_ms"]


def fit_log_slowdown(
    segments: Segments,
    x: csr_matrix,
    log_solo: np.ndarray,
    penalty: np.ndarray,
    start: np.ndarray,
    known: np.ndarray | float = 0.0,
    train: np.ndarray | None = None,
) -> np.ndarray:
    """Coefficients of a log slowdown that is linear in columns of the pieces: ridge regression on the work done.

    The work done over the pieces of a batch, ``sum dt / slowdown``, must equal its solo time. The log of their ratio is
    Huber-clipped, since stragglers are noise, not interference.

    Args:
        segments: measured pieces.
        x: (S, C) columns.
        log_solo: (N,) log of the solo time of each batch.
        penalty: (C,) weight of each squared coefficient, per batch.
        start: (C,) coefficients to start from.
        known: (S,) part of the log slowdown that is given.
        train: (N,) batches to fit; None: all.

    Returns:
        (C,) coefficients.
    """
    from scipy.optimize import minimize
    from scipy.sparse import csr_matrix

    train = np.ones(len(log_solo), bool) if train is None else train
    at = train[segments.batch]
    x, solo_ms, n = x[at], segments.dt_ms[at] * np.exp(-np.broadcast_to(known, at.shape)[at]), int(train.sum())
    row = (np.cumsum(train) - 1)[segments.batch[at]]
    gather = csr_matrix((np.ones(len(row)), (row, np.arange(len(row)))), shape=(n, len(row)))
    target, scaled = log_solo[train], penalty * n

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        piece = solo_ms * np.exp(-(x @ theta))
        work = np.maximum(gather @ piece, 1e-9)
        error = np.log(work) - target
        clipped = np.clip(error, -HUBER, HUBER)
        value = float(np.sum(clipped * (error - clipped / 2)))
        slope = -(x.T @ (piece * (gather.T @ (clipped / work))))
        return value + float(scaled @ theta**2) / 2, slope + scaled * theta

    return minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 500}).x


def fit_truth(
    segments: Segments,
    solo_ms: np.ndarray,
    demand: np.ndarray,
    ridge: float = 2e-4,
    base: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Slowdown by number of batches on a core and by pair.

    Args:
        segments: measured pieces.
        solo_ms: (M, B) solo execution time.
        demand: (M, B, 3) demand.
        ridge: penalty that pulls pair terms to zero beyond what demands explain, per batch.
        base: count and pair of a profile to start from, and to stay at where little was measured; None: start anew.

    Returns:
        count (n + 1,) up to the most batches seen on a core, pair (M*B, M*B) in logs, residual (N,): log of measured over
        fitted execution time.
    """
    from scipy.sparse import hstack

    n_models, n_sizes = solo_ms.shape
    flat = demand.reshape(solo_ms.size, -1)
    model = np.repeat(np.arange(n_models), n_sizes)
    most = max(int(segments.n.max()), 1 if base is None else len(base[0]) - 1)
    counts = (segments.n[:, None] == np.arange(2, most + 1)).astype(float)
    x = hstack([counts, demand_products(segments, flat), segments.pair_effects(model)], format="csr")
    at_demand = most - 1
    at_pair = at_demand + flat.shape[1] ** 2
    penalty = np.full(x.shape[1], ridge)
    penalty[:at_demand] = 1e-8 if base is None else ridge
    penalty[at_demand:at_pair] = ridge / 10
    start = np.zeros(x.shape[1])
    if base is None:
        start[:at_demand] = np.log(np.arange(2, most + 1))
    known = np.zeros(len(segments.dt_ms)) if base is None else log_slowdown(segments, *base)
    log_solo = np.log(solo_ms.ravel()[segments.variant])
    theta = fit_log_slowdown(segments, x, log_solo, penalty, start, known)
    residual = np.log(segments.over_batches(segments.dt_ms * np.exp(-(known + x @ theta)))) - log_solo
    count = np.ones(most + 1)
    count[2:] = np.exp(theta[:at_demand])
    pairs, victims, aggressors = np.split(theta[at_pair:], [n_models**2, n_models**2 + solo_ms.size])
    pair = (flat[:, None, :, None] * flat[None, :, None, :]).reshape(*[solo_ms.size] * 2, -1) @ theta[at_demand:at_pair]
    pair += pairs.reshape(n_models, n_models)[np.ix_(model, model)] + victims[:, None] + aggressors
    if base is not None:
        count *= counts_to(base[0], most)
        pair += base[1]
    return count, pair, residual


def demand_products(segments: Segments, demand: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    """(S, D*D) products of the demands (V, D) of a piece and the sum of its co-runners', weighted (S, K - 1).

    Without a weight, co-runners count by their share of another core.
    """
    own, other = segments.variants()
    weight = segments.share if weight is None else weight
    them = (demand[other] * weight[:, :, None]).sum(axis=1)
    return (demand[own][:, :, None] * them[:, None, :]).reshape(len(own), -1)


def log_slowdown(segments: Segments, count: np.ndarray, pair: np.ndarray) -> np.ndarray:
    """Log of the slowdown of each piece (S,) by a profile's count and pair."""
    out = np.log(counts_to(count, int(segments.n.max(initial=1))))[segments.n]
    own, other = segments.variants()
    return out + np.maximum((pair[own[:, None], other] * segments.share).sum(axis=1), 0.0)


def quantiles(noise: np.ndarray) -> np.ndarray:
    """Log residuals as a profile keeps them: (RESIDUALS,) quantiles, within reason."""
    return np.quantile(np.clip(noise, -1.0, 2.0), (np.arange(RESIDUALS) + 0.5) / RESIDUALS)


def drift_of(segments: Segments, residual: np.ndarray) -> np.ndarray:
    """What the residuals (N,) of batches near in time have in common, (N,)."""
    return running_median(segments.start_ms, residual, DRIFT_BATCHES)


def core_drift_of(segments: Segments, residual: np.ndarray) -> np.ndarray:
    """What the residuals (N,) of batches near in time on the same core have in common, (N,)."""
    drift = np.empty(len(residual))
    for core in np.unique(segments.core):
        mine = np.flatnonzero(segments.core == core)
        drift[mine] = running_median(segments.start_ms[mine], residual[mine], CORE_BATCHES)
    return drift


def running_median(time_ms: np.ndarray, values: np.ndarray, half: int) -> np.ndarray:
    """The median of each value (N,) and ``half`` on each side in time, (N,)."""
    order = np.argsort(time_ms, kind="stable")
    padded = np.pad(values[order], half, mode="reflect" if len(values) > half else "edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1)
    out = np.empty(len(values))
    out[order] = np.median(windows, axis=1)
    return out


def drift_period_ms(segments: Segments, drift: np.ndarray) -> float:
    """Time after which the drift has lost half of its correlation, in ms: the time between knots that behave alike."""
    order = np.argsort(segments.start_ms, kind="stable")
    time = segments.start_ms[order]
    step_ms = max(float(np.median(np.diff(time))) * DRIFT_BATCHES, 1.0)
    grid = np.arange(time[0], time[-1], step_ms)
    value = np.interp(grid, time, drift[order])
    value = value - value.mean()
    power = float(value @ value)
    for lag in range(1, len(grid) // 2):
        if power <= 0 or float(value[lag:] @ value[:-lag]) / power < 0.5:
            return lag * step_ms
    return float(time[-1] - time[0]) / 2


def piece_features(segments: Segments, demand: np.ndarray) -> np.ndarray:
    """Features of the predictor's device path for each piece: (S, N_DEVICE_FEATURES)."""
    flat = demand.reshape(-1, demand.shape[-1])
    mine, them = segments.variants()
    own, others = flat[mine], (flat[them] * segments.share[:, :, None]).sum(axis=1)
    out = np.empty((len(own), N_FEATURES))
    for i in range(len(own)):
        features(float(segments.n[i]), float(segments.n_other[i]), *own[i], *others[i], out[i])
    return out[:, :N_DEVICE_FEATURES]


def fit_weights(
    segments: Segments, solo_ms: np.ndarray, demand: np.ndarray, drift: np.ndarray, ridge: float = 1e-3, rounds: int = 5
) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the device path and the covariance that the online predictor starts from.

    The bracket of a batch's slowdown (see envs.scheduling.predictor) is linear in the mean of its pieces' features weighted
    by the work done in each, which itself depends on the slowdown; a few rounds of reweighting settle that. ``drift`` (N,)
    is taken out.
    """
    x = piece_features(segments, demand)
    n = len(segments.variant)
    solo = solo_ms.ravel()[segments.variant]
    took = segments.exec_ms / np.exp(drift)
    weights = np.zeros(N_DEVICE_FEATURES)
    mean = np.zeros((n, N_DEVICE_FEATURES))
    for _ in range(rounds):
        bracket = np.clip(1.0 + x @ weights, 1.0, MAX_SLOWDOWN)
        sliced = segments.dt_ms / bracket
        total = segments.over_batches(sliced)
        done = segments.over_batches(sliced / segments.n)
        y = np.minimum(took / (solo * total / np.maximum(done, 1e-9)), MAX_SLOWDOWN) - 1.0
        for f in range(N_DEVICE_FEATURES):
            mean[:, f] = segments.over_batches(sliced * x[:, f]) / np.maximum(total, 1e-9)
        gram = mean.T @ mean + ridge * n * np.eye(N_DEVICE_FEATURES) * 0.01
        weights = np.linalg.solve(gram, mean.T @ y)
        for _ in range(3):  # Huber reweighting
            error = y - mean @ weights
            h = np.minimum(1.0, 0.3 / np.maximum(np.abs(error), 1e-9))[:, None]
            weights = np.linalg.solve(
                (mean * h).T @ mean + ridge * n * np.eye(N_DEVICE_FEATURES) * 0.01, (mean * h).T @ y
            )
    cov = np.linalg.inv((mean.T @ mean / n + ridge * np.eye(N_DEVICE_FEATURES)) * WEIGHT_BATCHES)
    return weights, cov


def fit(measurements: Measurements, name: str) -> Profile:
    """A profile from a campaign.

    Args:
        measurements: solo runs of every model at every batch size, and co-location runs.
        name: name of the profile.
    """
    machine = measurements.machine
    h2d, solo, d2h = solo_arrays(measurements)
    demand = demands(measurements, solo)
    segments = cut(measurements)
    count, pair, residual = fit_truth(segments, solo, demand)
    drift = drift_of(segments, residual)
    weight, cov = predictor_start(*fit_weights(segments, solo, demand, drift))
    frame = measurements.batches
    noise = residual - drift
    return Profile(
        name=name,
        models=tuple(m.name for m in machine.models),
        batch_sizes=machine.batch_sizes,
        cores=float(cores_of(machine)),
        time_slice_ms=time_slice_of(machine),
        solo_ms=solo,
        h2d_ms=h2d,
        d2h_ms=d2h,
        demand=demand,
        share=np.ones(solo.shape),
        weight=weight,
        cov=cov,
        count=count,
        pair=pair,
        residual=quantiles(noise - np.median(noise)),
        drift_spread=float(drift.std()),
        drift_knot_ms=drift_period_ms(segments, drift),
        dispatch_ms=float(np.median(frame["h2d_start_ms"] - frame["dispatch_ms"])),
        source=f"{machine.device.name}, {machine.device.cores} cores, {machine.created}; "
        f"{len(frame)} batches: {machine.command}",
    )
