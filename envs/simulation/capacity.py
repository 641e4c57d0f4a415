"""Capacity of the simulated device: measured by saturating it, not assumed.

Queues are kept full and every stream busy with the batch size that costs least per request; completions per second are
counted. Loads of environments and evaluations are shares of this number.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Callable

import numpy as np

from envs.profiles.profile import Profile
from envs.scheduling import rng
from envs.scheduling.jit import CACHE, bind
from envs.scheduling.state import LOW, MET
from envs.simulation.config import MAX_STREAMS, EnvConfig
from envs.simulation.generate import COLUMNS, Generator
from envs.simulation.generate import make_generator as make_arrivals
from envs.simulation.randomise import make_randomiser
from envs.simulation.recording import no_recording
from envs.simulation.records import NEVER_DROP
from envs.simulation.simulator import Simulator
from envs.simulation.step import NO_ACTIONS, NO_BEGINS, Begins, EpisodeSource, advance_range, make_step_output
from traces.errors import InputError
from traces.files import atomic_write_text

BATCHES = 3000
WARM_BATCHES = 300
SEED = 0
QUICK_STREAMS = 12  # more take longer than people wait without a word


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
        raise InputError(f"model_share: {share}; expected shares of at least 0 with a sum above 0")
    return out / out.sum()


def measure_capacity(
    profile: Profile, streams: int = 4, share: dict[str, float] | None = None, noise: bool = True
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

    Returns:
        The same number every time: mix and noise are drawn from one seed.

    Raises:
        InputError: so many streams would take minutes, or a share is malformed.
    """
    if not 1 <= streams <= MAX_STREAMS:
        raise InputError(f"streams: {streams}; must be from 1 to {MAX_STREAMS}")
    path = CACHE / "capacity" / _key(profile, streams, share, noise)
    # A second in every start is worth a file: the number depends on nothing else.
    with contextlib.suppress(OSError, ValueError):
        return float(path.read_text())
    if streams > QUICK_STREAMS:
        print(f"measuring the capacity with 1 to {streams} streams, once", file=sys.stderr)
    capacity = _measure(profile, streams, share, noise)
    with contextlib.suppress(OSError):
        atomic_write_text(path, repr(capacity))
    return capacity


def _key(profile: Profile, streams: int, share: dict[str, float] | None, noise: bool) -> str:
    """Digest of everything that the capacity depends on, beside the sources."""
    digest = hashlib.sha256(repr((profile.batch_sizes, streams, sorted((share or {}).items()), noise)).encode())
    for field in (*profile.tables(), *profile.truth(streams, noise=noise)):
        digest.update(np.ascontiguousarray(field).tobytes())
    return digest.hexdigest()[:32]


def _measure(profile: Profile, streams: int, share: dict[str, float] | None, noise: bool) -> float:
    sizes = np.array(profile.batch_sizes)
    best = np.argmin(profile.solo_ms / sizes, axis=1)
    # Batches, not requests, are drawn: a model with large batches is drawn less often.
    cumulative = np.cumsum(model_shares(profile, share) / sizes[best])
    picks = np.searchsorted(cumulative[:-1], rng.uniforms(SEED, BATCHES) * cumulative[-1], side="right")
    models = np.repeat(picks, sizes[best[picks]])  # of the requests, in the order in which they are served
    sim = Simulator(profile, streams, streams, len(models), int(np.bincount(models).max()), noise=noise)
    advance = _begin(sim)
    _fill_queues(sim, models)
    actions = (LOW * len(profile.models) + picks) * len(sizes) + best[picks]  # action_of for all at once
    count, env = sim.state.count[:, LOW, MET], sim.state.scheduler
    env["n_free"] = np.arange(1, streams + 1)  # one world for each number of batches in flight
    for started, action in enumerate(actions[:-1]):
        if started == WARM_BATCHES:
            warm_done, warm_ms = count.copy(), env["now"].copy()
        advance(np.full(streams, action))
    # Counting stops when the last batch starts, so that the device is full all the time.
    return 1e3 * float(np.max((count - warm_done) / (env["now"] - warm_ms)))


def _begin(sim: Simulator) -> Callable[[np.ndarray], None]:
    """Begin an episode without arrivals in every world. Returns what takes one decision in each: actions (n,).

    The loop of the training worlds is used, since they need it anyhow and compiling one for this alone takes seconds.
    """
    n, n_models = sim.n, len(sim.profile.models)
    sim.world.rules[:] = NEVER_DROP
    none = np.zeros((1, COLUMNS))
    generator = make_arrivals(none, none, np.full((1, n_models), 1.0 / n_models), np.zeros(1), n)
    randomiser, _ = make_randomiser(sim.truth, EnvConfig(streams=sim.n_streams), n)
    source = EpisodeSource(generator, no_recording(), randomiser)
    args = (sim.arrays, source, make_step_output(n, sim.obs_size, sim.n_actions), 0, n)
    begin = (NO_ACTIONS, Begins(np.ones(n, bool), np.full(n, SEED, np.uint64)), False)
    compiled = bind(advance_range, *args, *begin)
    compiled(*args, *begin)
    sim.world.episode["done"] = 0
    return lambda actions: compiled(*args, actions, NO_BEGINS, False)


def _fill_queues(sim: Simulator, models: np.ndarray) -> None:
    """Put a low-priority request without deadline into the queue of each of ``models``, in every world."""
    entry, queue = sim.state.entry[:, LOW], sim.state.queue[:, LOW]
    entry["deadline"] = np.inf
    for model in range(len(sim.profile.models)):
        ids = np.flatnonzero(models == model)
        entry["id"][:, model, : len(ids)] = ids
        queue["length"][:, model] = len(ids)
    sim.state.scheduler["n_queued"] = len(models)


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
