"""Capacity of the simulated device: measured by saturating it, not assumed.

Queues are kept full and every stream busy with the batch size that costs least per request; completions per second are
counted. Loads of environments and evaluations are shares of this number.
"""

from __future__ import annotations

import contextlib
import hashlib

import numpy as np

from envs import rng
from envs.config import EnvConfig
from envs.generate import COLUMNS, Generator
from envs.generate import make_generator as make_arrivals
from envs.jit import CACHE, in_haste, njit
from envs.profile import Profile
from envs.scheduler import action_of, dispatch, enqueue
from envs.simulator import Simulator
from envs.world import begin, collect, launch, run_event
from traces.errors import InputError
from traces.files import atomic_write_text

BATCHES = 3000
WARM_BATCHES = 300


@njit
def _saturate(st, w, tb, tr, seed, in_flight, cumulative, best, n_batches, n_warm):
    """Requests completed per ms with ``in_flight`` batches always on the device; the first ``n_warm`` do not count."""
    w.env[0].n = 0
    begin(st, w, tb, 0, seed)
    n_models = cumulative.shape[0]
    n_streams = st.stream.shape[1]
    next_id = 0
    started = 0
    warm_done = 0
    warm_ms = 0.0
    while True:
        while n_streams - st.env[0].n_free < in_flight and started < n_batches:
            pick = rng.uniform(seed, started) * cumulative[n_models - 1]
            m = 0
            while m < n_models - 1 and cumulative[m] <= pick:
                m += 1
            b = best[m]
            for _ in range(tb.size[b]):
                enqueue(st, tb, 0, st.env[0].now, 1, m, next_id, np.inf)
                next_id += 1
            launch(st, w, tr, 0, dispatch(st, tb, 0, action_of(tb, n_models, 1, m, b)))
            started += 1
        # Counting stops when there is nothing more to start, so that the device is full all the time.
        if started == n_batches:
            break
        run_event(st, w, tb, tr, 0)
        collect(st, w, tr, 0)
        if started <= n_warm:
            warm_done = st.count[0, 1, 1]
            warm_ms = st.env[0].now
    return (st.count[0, 1, 1] - warm_done) / (st.env[0].now - warm_ms)


def model_shares(profile: Profile, share: dict[str, float] | None) -> np.ndarray:
    """(M,) share of each model, adding up to 1.

    Raises:
        InputError: an unknown model, or shares that are negative or all 0.
    """
    if share is None:
        return np.full(len(profile.models), 1.0 / len(profile.models))
    out = np.zeros(len(profile.models))
    for model, value in share.items():
        out[profile.index(model)] = value
    if not np.all(np.isfinite(out) & (out >= 0)) or out.sum() <= 0:
        raise InputError(f"model_share: {share}; shares of at least 0 with a sum above 0 are wanted")
    return out / out.sum()


def measure_capacity(
    profile: Profile, streams: int = 4, share: dict[str, float] | None = None, noise: bool = True, seed: int = 0
) -> float:
    """Requests per second that the simulated device completes when its queues are never empty.

    Each model runs at the batch size with the least execution time per request; models alternate at random so that the
    requests have the wanted shares. The number of batches in flight is the best of 1..K, since on a small device a full
    house can be slower than fewer streams. Priorities do not change what the device can do.

    Args:
        profile: models and device.
        streams: streams K.
        share: share of each model by name; None: equal.
        noise: whether batches draw measured residuals and stragglers.
        seed: of the mix and the noise; the same seed gives the same number.
    """
    path = CACHE / "capacity" / _key(profile, streams, share, noise, seed)
    # A second in every start is worth a file: the number depends on nothing else.
    with contextlib.suppress(OSError, ValueError):
        return float(path.read_text())
    capacity = _measure(profile, streams, share, noise, seed)
    with contextlib.suppress(OSError):
        atomic_write_text(path, repr(capacity))
    return capacity


def _key(profile: Profile, streams: int, share: dict[str, float] | None, noise: bool, seed: int) -> str:
    """Digest of everything that the capacity depends on, beside the sources."""
    digest = hashlib.sha256(repr((profile.batch_sizes, streams, sorted((share or {}).items()), noise, seed)).encode())
    for field in (*profile.tables(), *profile.truth(streams, noise=noise)):
        digest.update(np.ascontiguousarray(field).tobytes())
    return digest.hexdigest()[:32]


def _measure(profile: Profile, streams: int, share: dict[str, float] | None, noise: bool, seed: int) -> float:
    sizes = np.array(profile.batch_sizes)
    best = np.argmin(profile.solo_ms / sizes, axis=1)
    # Batches, not requests, are drawn: a model with large batches is drawn less often.
    cumulative = np.cumsum(model_shares(profile, share) / sizes[best])
    sim = Simulator(profile, 1, streams, BATCHES * int(sizes[-1]), int(sizes[-1]), noise=noise)
    with in_haste():
        rates = [
            _saturate(
                sim.state,
                sim.world,
                sim.tables,
                sim.truth,
                np.uint64(seed),
                k,
                cumulative,
                best,
                BATCHES,
                WARM_BATCHES,
            )
            for k in range(1, streams + 1)
        ]
    return 1e3 * max(rates)


def make_generator(profile: Profile, config: EnvConfig, capacity_rps: float, n: int = 1) -> Generator:
    """Generator of arrivals for n worlds, as the settings say, with loads as shares of ``capacity_rps``."""
    load = config.load or (1.0, 1.0)
    columns = (
        tuple(v * capacity_rps / 1e3 for v in load),
        config.burst,
        config.burst_share,
        config.burst_ms,
        config.high_fraction,
        config.deadline_factor_high,
        config.deadline_factor_low,
        config.duration_ms,
    )
    assert len(columns) == COLUMNS
    ends = np.array(columns, float).T
    share = model_shares(profile, config.model_share)[None]
    return make_arrivals(ends[:1].copy(), ends[1:].copy(), share, np.array([config.mix_spread]), n)
