"""From measurements to a profile; the command is ``python -m envs.fit``.

Fits two things apart. The truth of the simulator: log slowdown by number of batches on a core and by pair of (model, batch
size) on different cores, with a ridge that pulls pairs to what their demands explain, so that the work done over a batch's
pieces, ``sum dt / slowdown``, equals its solo time; what its residuals have in common with their neighbours in time is the
drift, the rest the noise. The prior of the scheduler's online predictor: the linear form of envs.scheduling.predictor on
the same pieces.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize
from scipy.sparse import csr_matrix

from envs.profiles.profile import Profile, counts_to, predictor_start
from envs.profiles.segments import Segments, cores_of, cut, time_slice_of
from envs.scheduling.predictor import MAX_SLOWDOWN, N_DEVICE_FEATURES, features
from envs.scheduling.state import N_DEMAND, N_FEATURES
from traces.errors import InputError
from traces.measurements import Measurements

WEIGHT_BATCHES = 500  # batches that the online predictor's prior is worth
RESIDUALS = 512
DRIFT_BATCHES = 25  # batches on each side whose median residual is taken for the drift of the device
CORE_BATCHES = 5  # the same for one core: this many predict best what a batch between them took


def demands(measurements: Measurements, solo_ms: np.ndarray) -> np.ndarray:
    """Demand of each (model, batch size) on the device, as fractions of it: (M, B, 3).

    Compute: achieved over peak FLOP/s. Memory: bytes of weights and activations moved over time and peak bandwidth. Cache:
    the same bytes against 4 MiB, squashed to (0, 1), since the cache shared by all is not known to the profiler.

    Args:
        measurements: the campaign. solo_ms: (M, B) solo execution time.
    """
    device = measurements.machine.device
    out = np.empty((*solo_ms.shape, N_DEMAND))
    for i, model in enumerate(measurements.machine.models):
        for j, size in enumerate(measurements.machine.batch_sizes):
            seconds = solo_ms[i, j] / 1e3
            moved = model.weight_bytes + size * model.activation_bytes_per_item
            out[i, j, 0] = size * model.flops_per_item / seconds / (device.peak_gflops * 1e9)
            out[i, j, 1] = moved / seconds / (device.peak_gbps * 1e9)
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


def fit_truth(
    segments: Segments,
    solo_ms: np.ndarray,
    demand: np.ndarray,
    ridge: float = 0.02,
    base: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Slowdown by number of batches on a core and by pair.

    Args:
        segments: measured pieces. solo_ms: (M, B). demand: (M, B, 3).
        ridge: weight of the penalty that pulls pair terms to zero beyond what demands explain.
        base: count and pair of a profile to start from, and to stay at where little was measured; None: start anew.

    Returns:
        count (n + 1,) up to the most batches seen on a core, pair (M*B, M*B) in logs, residual (N,): log of measured over
        fitted execution time.
    """
    mbs = solo_ms.size
    n_sizes = solo_ms.shape[1]
    n_models = mbs // n_sizes
    flat = demand.reshape(mbs, -1)
    # Columns: count terms for n = 2.., products of demands, pairs of models, batch-size corrections on both sides.
    n_demand = flat.shape[1] ** 2
    most = max(int(segments.n.max()), 1 if base is None else len(base[0]) - 1)
    at_demand = most - 1
    at_pair = at_demand + n_demand
    at_row = at_pair + n_models * n_models
    at_col = at_row + mbs
    columns = at_col + mbs
    rows, cols, vals = [], [], []
    s = len(segments.dt_ms)
    own = segments.mb[segments.batch]
    for n in range(2, most + 1):
        at = np.flatnonzero(segments.n == n)
        rows.append(at)
        cols.append(np.full(len(at), n - 2))
        vals.append(np.ones(len(at)))
    for slot in range(segments.others.shape[1]):
        at = np.flatnonzero(segments.others[:, slot] >= 0)
        if len(at) == 0:
            continue
        them = segments.mb[segments.others[at, slot]]
        mine = own[at]
        products = (flat[mine][:, :, None] * flat[them][:, None, :]).reshape(len(at), -1)
        for d in range(n_demand):
            rows.append(at)
            cols.append(np.full(len(at), at_demand + d))
            vals.append(products[:, d] * segments.share[at, slot])
        for offset, index in (
            (at_pair, (mine // n_sizes) * n_models + them // n_sizes),
            (at_row, mine),
            (at_col, them),
        ):
            rows.append(at)
            cols.append(offset + index)
            vals.append(segments.share[at, slot])
    x = csr_matrix((np.concatenate(vals), (np.concatenate(rows), np.concatenate(cols))), shape=(s, columns))
    n_batches = len(segments.mb)
    gather = csr_matrix((np.ones(s), (segments.batch, np.arange(s))), shape=(n_batches, s))
    log_solo = np.log(solo_ms.ravel()[segments.mb])
    penalty = np.full(columns, ridge)
    penalty[:at_demand] = 1e-6 if base is None else ridge
    penalty[at_demand:at_pair] = ridge / 10
    known = np.zeros(s) if base is None else log_slowdown(segments, *base)

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        piece = segments.dt_ms * np.exp(-(known + x @ theta))
        work = np.maximum(gather @ piece, 1e-9)
        error = np.log(work) - log_solo
        # Huber: stragglers are noise, not interference.
        weight = np.clip(error, -0.15, 0.15)
        value = float(np.sum(np.where(np.abs(error) < 0.15, error**2 / 2, 0.15 * (np.abs(error) - 0.075))))
        slope = -(x.T @ (piece * (gather.T @ (weight / work))))
        scale = n_batches / 100.0
        return value + scale * float(penalty @ theta**2) / 2, slope + scale * penalty * theta

    start = np.zeros(columns)
    if base is None:
        start[:at_demand] = np.log(np.arange(2, most + 1))
    theta = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 500}).x
    work = gather @ (segments.dt_ms * np.exp(-(known + x @ theta)))
    residual = np.log(work) - log_solo
    count = np.ones(most + 1)
    count[2:] = np.exp(theta[:at_demand])
    m = np.arange(mbs)
    pair = (flat[:, None, :, None] * flat[None, :, None, :]).reshape(mbs, mbs, -1) @ theta[at_demand:at_pair]
    pair += theta[at_pair:at_row].reshape(n_models, n_models)[np.ix_(m // n_sizes, m // n_sizes)]
    pair += theta[at_row:at_col][:, None] + theta[at_col:][None, :]
    if base is not None:
        count *= counts_to(base[0], most)
        pair += base[1]
    return count, pair, residual


def log_slowdown(segments: Segments, count: np.ndarray, pair: np.ndarray) -> np.ndarray:
    """Log of the slowdown of each piece (S,) by a profile's count and pair."""
    out = np.log(counts_to(count, int(segments.n.max(initial=1))))[segments.n]
    beside = np.zeros(len(out))
    own = segments.mb[segments.batch]
    for slot in range(segments.others.shape[1]):
        at = np.flatnonzero(segments.others[:, slot] >= 0)
        beside[at] += pair[own[at], segments.mb[segments.others[at, slot]]] * segments.share[at, slot]
    return out + np.maximum(beside, 0.0)


def quantiles(noise: np.ndarray) -> np.ndarray:
    """Log residuals as a profile keeps them: (RESIDUALS,) quantiles, within reason."""
    return np.quantile(np.clip(noise, -1.0, 2.0), (np.arange(RESIDUALS) + 0.5) / RESIDUALS)


def drift_of(segments: Segments, residual: np.ndarray) -> np.ndarray:
    """What the residuals (N,) of batches near in time have in common, (N,)."""
    return _running_median(segments.start_ms, residual, DRIFT_BATCHES)


def core_drift_of(segments: Segments, residual: np.ndarray) -> np.ndarray:
    """What the residuals (N,) of batches near in time on the same core have in common, (N,)."""
    drift = np.empty(len(residual))
    for core in np.unique(segments.core):
        mine = np.flatnonzero(segments.core == core)
        drift[mine] = _running_median(segments.start_ms[mine], residual[mine], CORE_BATCHES)
    return drift


def _running_median(time_ms: np.ndarray, values: np.ndarray, half: int) -> np.ndarray:
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
    own = flat[segments.mb[segments.batch]]
    others = (flat[segments.mb[np.maximum(segments.others, 0)]] * segments.share[:, :, None]).sum(axis=1)
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
    n = len(segments.mb)
    solo = solo_ms.ravel()[segments.mb]
    took = segments.exec_ms / np.exp(drift)
    weights = np.zeros(N_DEVICE_FEATURES)
    mean = np.zeros((n, N_DEVICE_FEATURES))
    for _ in range(rounds):
        bracket = np.clip(1.0 + x @ weights, 1.0, MAX_SLOWDOWN)
        sliced = segments.dt_ms / bracket
        total = np.bincount(segments.batch, sliced, n)
        done = np.bincount(segments.batch, sliced / segments.n, n)
        y = np.minimum(took / (solo * total / np.maximum(done, 1e-9)), MAX_SLOWDOWN) - 1.0
        for f in range(N_DEVICE_FEATURES):
            mean[:, f] = np.bincount(segments.batch, sliced * x[:, f], n) / np.maximum(total, 1e-9)
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
    weight, cov = fit_weights(segments, solo, demand, drift)
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
        **predictor_start(weight, cov),
        count=count,
        pair=pair,
        residual=quantiles(noise - np.median(noise)),
        drift_spread=float(drift.std()),
        drift_knot_ms=drift_period_ms(segments, drift),
        dispatch_ms=float(np.median(frame["h2d_start_ms"] - frame["dispatch_ms"])),
        source=f"{machine.device.name}, {machine.device.cores} cores, {machine.created}; "
        f"{len(frame)} batches: {machine.command}",
    )
