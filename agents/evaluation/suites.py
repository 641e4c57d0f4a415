"""What is evaluated: workloads by name, and suites of policies, workloads, loads and seeds."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from envs.profiles.profile import Profile
from traces import arrivals
from traces.errors import InputError
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
        workloads: names from ``WORKLOADS``.
        loads: offered load over measured capacity.
        seeds: number of seeds, paired over policies.
        duration_ms: length of each run.
        workload: how models, priorities and deadlines are laid over the arrivals.
        models: models served, by name; empty: all of the profile but those of ``UNSEEN``.
    """

    name: str
    policies: tuple[str, ...]
    workloads: tuple[str, ...]
    loads: tuple[float, ...]
    seeds: int = 10
    duration_ms: float = 20_000.0
    workload: WorkloadConfig = WorkloadConfig()
    models: tuple[str, ...] = ()

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
    if kind in KNOWN:
        return known_times(kind, rate_rps, duration_ms, rng)
    raise InputError(f"unknown workload {kind!r}; known: {', '.join(WORKLOADS)}")


def known_times(name: str, rate_rps: float, duration_ms: float, rng: np.random.Generator) -> np.ndarray:
    """A window of a real trace (or of its twin) as it is, but stretched so that its own mean rate is the one asked for.

    A window at random has more or fewer arrivals than the trace's mean; compared at a load, it should have that load.
    """
    times = real_or_twin(name, 2.0 * duration_ms, rng, rate_rps=rate_rps, repeat=True).arrival_ms
    times = times[: max(round(rate_rps * duration_ms / 1e3), 1)]
    first, last = (times[0], times[-1]) if len(times) else (0.0, 0.0)
    span = max(last - first, 1e-9) * (len(times) + 1) / max(len(times), 1)
    return (times - first) * (duration_ms / span)


def workload_for(
    kind: str, rate_rps: float, duration_ms: float, profile: Profile, config: WorkloadConfig, seed: int
) -> Workload:
    """The workload of a kind for one seed: the same for every policy that is compared."""
    # The seed of a workload is its own, not that of the noise: crc32 is stable over processes, hash() is not.
    rng = np.random.default_rng([seed, zlib.crc32(kind.encode())])
    times = arrival_times(kind, rate_rps, duration_ms, rng)
    return make_workload(times, profile.models, profile.solo_latency_ms, config, rng, kind)
