"""What is evaluated: workloads by name, and suites of policies, workloads, loads and seeds."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from envs.profiles.profile import Profile
from traces import arrivals
from traces.errors import InputError
from traces.formats import is_trace_file, is_workload
from traces.twin.known import KNOWN, real_or_twin
from traces.workload import Workload, WorkloadConfig, make_workload

SYNTHETIC = ("poisson", "bursty", "diurnal", "gamma")
WORKLOADS = (*SYNTHETIC, *KNOWN)
UNSEEN = ("unet", "mixer")  # models of the shipped profile that no suite but "unseen" uses, nor any training


@dataclass(frozen=True)
class Suite:
    """What to run.

    Attributes:
        name: of the suite.
        policies: names of registered policies, or paths of checkpoints.
        workloads: names from ``WORKLOADS``, or trace files.
        loads: offered load over measured capacity.
        seeds: number of seeds, paired over policies.
        duration_ms: length of each run.
        workload: how models, priorities and deadlines are laid over the arrivals.
        models: models served, by name; empty: all of the profile but those of ``UNSEEN``.
        models_in_memory: models that memory holds at once, 0 for all; load_ms: time that loading another takes.
    """

    name: str
    policies: tuple[str, ...]
    workloads: tuple[str, ...]
    loads: tuple[float, ...]
    seeds: int = 10
    duration_ms: float = 20_000.0
    workload: WorkloadConfig = WorkloadConfig()
    models: tuple[str, ...] = ()
    models_in_memory: int = 0
    load_ms: float = 100.0

    def select(self, profile: Profile) -> Profile:
        """The profile with the models that this suite serves. Raises InputError when it lacks one."""
        return profile.select(self.models or seen_models(profile))


def seen_models(profile: Profile) -> tuple[str, ...]:
    """The models of a profile that training and most suites use; all where it has none but unseen ones."""
    return tuple(m for m in profile.models if m not in UNSEEN) or profile.models


def arrival_times(kind: str, rate_rps: float, duration_ms: float, rng: np.random.Generator) -> np.ndarray:
    """Arrival times (R,) in ms of a named kind of workload at a mean rate.

    Raises:
        InputError: no such kind.
    """
    if kind == "poisson":
        return arrivals.poisson(rate_rps, duration_ms, rng)
    if kind == "gamma":
        return arrivals.gamma_renewal(rate_rps, duration_ms, 3.0, rng)
    if kind == "bursty":
        # Bursts of half a second at 2.5 times the mean rate, a fifth of the time.
        calm = rate_rps * (1 - 0.2 * 2.5) / 0.8
        return arrivals.mmpp([calm, 2.5 * rate_rps], [2000.0, 500.0], duration_ms, rng)
    if kind == "diurnal":
        return arrivals.diurnal(rate_rps, duration_ms, rng, amplitude=0.6, period_ms=duration_ms)
    if kind in KNOWN or is_trace_file(kind):
        return trace_times(kind, rate_rps, duration_ms, rng)
    raise InputError(f"unknown workload {kind!r}; expected a trace file or one of {', '.join(WORKLOADS)}")


def trace_times(name: str, rate_rps: float, duration_ms: float, rng: np.random.Generator) -> np.ndarray:
    """A window of a real trace (or of its twin) as it is, but stretched so that its own mean rate is the one asked for.

    A window at random has more or fewer arrivals than the trace's mean; compared at a load, it should have that load.
    """
    times = real_or_twin(name, 2.0 * duration_ms, rng, rate_rps=rate_rps, repeat=True).arrival_ms
    return _stretched(times[: max(round(rate_rps * duration_ms / 1e3), 1)], duration_ms)


def requests_in_a_row(recorded: Workload, rate_rps: float, duration_ms: float, rng: np.random.Generator) -> Workload:
    """Recorded requests from one at random on, begun again at the end, as many as the rate asks for in the duration."""
    if not recorded.duration_ms:
        raise InputError(f"workload {recorded.name!r} has no duration, so no rate to change")
    count = max(round(rate_rps * duration_ms / 1e3), 1)
    laps, rows = np.divmod(rng.integers(len(recorded)) + np.arange(count), len(recorded))
    times = recorded.arrival_ms[rows] + laps * recorded.duration_ms * (1 + 1 / len(recorded))
    arrays = {name: value[rows] for name, value in vars(recorded).items() if isinstance(value, np.ndarray)}
    return replace(recorded, **arrays | {"arrival_ms": _stretched(times, duration_ms)})


@lru_cache(maxsize=1)  # every load and seed of a suite takes its window from the same file
def _recorded(path: str, models: tuple[str, ...]) -> Workload:
    return Workload.load(path, models)


def check_workload(kind: str, profile: Profile) -> None:
    """InputError where there is no such workload, or its file is malformed or asks for a model that the profile lacks."""
    if kind not in WORKLOADS:
        workload_for(kind, 10.0, 100.0, profile, WorkloadConfig(), 0)


def _stretched(times_ms: np.ndarray, duration_ms: float) -> np.ndarray:
    """Times from 0 on, stretched so that a mean gap follows the last before the duration is over."""
    first, last = (times_ms[0], times_ms[-1]) if len(times_ms) else (0.0, 0.0)
    span = max(last - first, 1e-9) * (len(times_ms) + 1) / max(len(times_ms), 1)
    return (times_ms - first) * (duration_ms / span)


def workload_for(
    kind: str, rate_rps: float, duration_ms: float, profile: Profile, config: WorkloadConfig, seed: int
) -> Workload:
    """The workload of a kind, or of a trace file, for one seed: the same for every policy that is compared."""
    # The seed of a workload is its own, not that of the noise: crc32 is stable over processes, hash() is not.
    rng = np.random.default_rng([seed, zlib.crc32(kind.encode())])
    if is_workload(kind):
        return requests_in_a_row(_recorded(kind, profile.models), rate_rps, duration_ms, rng)
    times = arrival_times(kind, rate_rps, duration_ms, rng)
    return make_workload(times, profile.models, profile.solo_latency_ms, config, rng, kind)
