"""Recorded requests as a source of episodes: each is a window of the recording, at the load the episode draws."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from envs.profiles.profile import Profile
from envs.scheduling import rng as draws
from envs.scheduling.jit import njit
from envs.simulation.config import EnvConfig
from traces.formats import load_trace
from traces.twin.generator import twin
from traces.twin.known import real_or_twin
from traces.workload import Workload, WorkloadConfig, make_workload

HOUR_MS = 3.6e6


LEAST_RATE, MOST_RATE, LEAST_LENGTH, MOST_LENGTH = range(4)  # places of Recording.window


class Recording(NamedTuple):
    """A workload as arrays over its R requests; R = 0 means that there is none.

    Attributes:
        arrival: (R,) ms. deadline: (R,) ms after arrival. model: (R,) index in the profile. priority: (R,).
        window: (4,) least and greatest arrivals per ms that an episode is stretched to (0: as recorded), and least and
            greatest duration in ms (0: the whole); by LEAST_RATE, MOST_RATE, LEAST_LENGTH and MOST_LENGTH.
    """

    arrival: np.ndarray
    deadline: np.ndarray
    model: np.ndarray
    priority: np.ndarray
    window: np.ndarray


def no_recording() -> Recording:
    """The recording without requests: episodes are generated."""
    return Recording(np.zeros(0), np.zeros(0), np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(4))


def make_recording(
    workload: Workload,
    profile: Profile,
    rate_rps: tuple[float, float] | None,
    duration_ms: tuple[float, float] | None,
) -> Recording:
    """A recording of a workload.

    Args:
        workload: the requests.
        profile: its models must include those of the workload that are asked for.
        rate_rps: range of rates to stretch arrivals to; None: as recorded.
        duration_ms: range of lengths of a window, after stretching; None: the whole, from its start.

    Raises:
        InputError: the profile lacks a model that is asked for.
    """
    used = np.unique(workload.model)
    index = np.zeros(len(workload.models), np.int32)
    for model in used:
        index[model] = profile.index(workload.models[model])
    rate = (0.0, 0.0) if rate_rps is None else rate_rps
    length = (0.0, 0.0) if duration_ms is None else duration_ms
    return Recording(
        arrival=workload.arrival_ms.copy(),
        deadline=workload.deadline_ms.copy(),
        model=index[workload.model],
        priority=workload.priority.astype(np.int32),
        window=np.array([rate[0] / 1e3, rate[1] / 1e3, length[0], length[1]]),
    )


def load_workload(config: EnvConfig, profile: Profile) -> Workload:
    """The workload that the settings name: a trace file, "twin:NAME" or "trace:NAME" (traces.twin.known).

    A twin and most traces hold arrivals alone: models, priorities and deadlines are laid over them with the settings' shares
    and the middle of their ranges. The draw is the same every time.

    Raises:
        InputError: no such file or name, or a malformed file.
    """
    name = str(config.workload)
    kind, _, rest = name.partition(":")
    rng = np.random.default_rng(0)
    if kind == "twin":
        arrival_ms = twin(rest, HOUR_MS, rng)
    elif kind == "trace":
        arrival_ms = real_or_twin(rest, HOUR_MS, rng).arrival_ms
    else:
        recorded = load_trace(name)
        if isinstance(recorded, Workload):
            return recorded
        arrival_ms = recorded.arrival_ms
    settings = WorkloadConfig(
        model_share=config.model_share,
        high_fraction=sum(config.high_fraction) / 2,
        deadline_factor_high=sum(config.deadline_factor_high) / 2,
        deadline_factor_low=sum(config.deadline_factor_low) / 2,
    )
    return make_workload(arrival_ms, profile.models, profile.solo_latency_ms, settings, rng, name)


@njit
def cut(world, recording, env, seed):
    """Put the window that ``seed`` draws into ``w.request[e]`` and set ``w.episode[e].n``; stops when the room is full."""
    own = draws.mix(seed, draws.WINDOW)
    total = recording.arrival.shape[0]
    span = recording.arrival[total - 1]
    rate = recording.window[LEAST_RATE] + (recording.window[MOST_RATE] - recording.window[LEAST_RATE]) * draws.uniform(
        own, 0
    )
    stretch = 1.0
    if rate > 0.0 and span > 0.0:
        stretch = total / span / rate
    length = recording.window[LEAST_LENGTH] + (
        recording.window[MOST_LENGTH] - recording.window[LEAST_LENGTH]
    ) * draws.uniform(own, 1)
    start = 0.0
    end = np.inf
    if length > 0.0:
        start = max(span - length / stretch, 0.0) * draws.uniform(own, 2)
        end = start + length / stretch
    lo = np.searchsorted(recording.arrival, start)
    n = 0
    while n < world.request.shape[1] and lo + n < total and recording.arrival[lo + n] <= end:
        r = world.request[env, n]
        r.arrival = (recording.arrival[lo + n] - start) * stretch
        r.deadline = r.arrival + recording.deadline[lo + n]
        r.model = recording.model[lo + n]
        r.priority = recording.priority[lo + n]
        n += 1
    world.episode[env].n = n
