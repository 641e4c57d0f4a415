"""What the simulated worlds are made of, beside the scheduler's own state and the truth about their device.

The scheduler's predictor (envs.scheduling.predictor) never reads any of this.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from envs.profiles.truth import Truth
from envs.scheduling.state import SchedState, Tables, records

# Phases of a stream; what is not at work comes first.
IDLE, SUSPENDED, COPY_IN, EXECUTE, COPY_OUT = range(5)

episode_t = np.dtype(
    [
        ("seed", "u8"),  # of this episode
        ("number", "i8"),  # episodes begun
        ("time", "f8"),  # time up to which progress is accounted
        ("h2d_free", "f8"),  # when the copy engine to the device is free
        ("d2h_free", "f8"),
        ("end", "f8"),  # no dispatch after this time: what is queued then is dropped
        ("next", "i4"),  # next arrival
        ("n", "i4"),  # arrivals in this episode
        ("done", "i4"),
        ("reward", "f8"),  # collected since the last decision
        ("ret", "f8"),  # undiscounted return of the episode
        ("steps", "i8"),  # decisions in this episode
        ("suspend", "f8"),  # when low priority will be suspended; inf when nothing is under way
        ("drift_start", "i8"),  # knot of the measured speed at which the episode began
        ("knot", "i8"),  # knots of the drift between which the present lies, -1 for none yet; and its values there
        ("drift_a", "f8"),
        ("drift_b", "f8"),
        ("suspending", "i4"),  # 1 while low priority may not execute
    ],
    align=True,
)
run_t = np.dtype(
    [
        ("until", "f8"),  # end of the copy under way
        ("work", "f8"),  # execution left, ms alone on the device
        ("noise", "f8"),  # factor on this batch's execution time
        ("slow", "f8"),  # slowdown in force
        ("h2d_start", "f8"),
        ("h2d_end", "f8"),
        ("exec_end", "f8"),
        ("phase", "i4"),
        ("mb", "i4"),  # model * B + size index
        ("priority", "i4"),
        ("core", "i4"),
        ("sharing", "i4"),  # batches that execute on this core
    ],
    align=True,
)
request_t = np.dtype(
    [
        ("arrival", "f8"),
        ("deadline", "f8"),  # absolute
        ("start", "f8"),  # dispatch; nan if never
        ("finish", "f8"),  # when it ended, however it ended
        ("model", "i4"),
        ("priority", "i4"),
        ("outcome", "i4"),
        ("batch", "i4"),  # -1 if never dispatched
        ("baseline", "i4"),  # 1 where its violation is taken for granted: the reward then counts it as nothing
    ],
    align=True,
)


rules_t = np.dtype(
    [
        ("drop_scale", "f8"),  # a queued request is dropped when even this many times solo is too late; 0: never
        ("defer_ms", "f8"),  # a deferral ends after so long, if no event ends it before
        ("end_ms", "f8"),  # after the last arrival, until what is still queued is dropped
        ("grace_ms", "f8"),  # after its deadline, until a queued request is dropped in any case; inf: never
    ],
    align=True,
)
preemption_t = np.dtype(
    [
        ("active", "f8"),  # 1: low-priority batches are suspended while a high-priority one executes
        ("latency_ms", "f8"),  # until a suspension takes effect
        ("overhead", "f8"),  # share by which it lengthens every execution
        ("resume_ms", "f8"),  # execution that a resumed batch does again
    ],
    align=True,
)
memory_t = np.dtype(
    [
        ("room", "i4"),  # models that memory holds at once; 0: all
        ("first", "i4"),  # the first that it holds at the start, and those behind it
        ("loading", "i4"),  # model that is being loaded, -1 for none
        ("loaded_at", "f8"),  # when that ends; inf
        ("load_ms", "f8"),  # how long it takes
    ],
    align=True,
)
residency_t = np.dtype(
    [
        ("here", "i4"),  # 1 while the model is in memory
        ("held", "i4"),  # requests that wait for it to be loaded
        ("held_from", "i8"),  # the first of them
        ("used", "f8"),  # when it answered last
    ],
    align=True,
)
NEVER_DROP = (0.0, np.inf, np.inf, np.inf)  # rules under which nothing is dropped, ever


class World(NamedTuple):
    """State of N simulated worlds beside their ``SchedState``.

    Attributes:
        episode: (N,) records.
        run: (N, K) records, the true state of each stream.
        request: (N, R) records.
        rules: (N,) records, when a world drops requests and how long a deferral lasts.
        preemption: (N,) records, software preemption of the device.
        memory: (N,) records, the memory that models must share.
        residency: (N, M) records, which of them are in it.
    """

    episode: np.ndarray
    run: np.ndarray
    request: np.ndarray
    rules: np.ndarray
    preemption: np.ndarray
    memory: np.ndarray
    residency: np.ndarray


def make_world(n: int, n_streams: int, n_requests: int, n_models: int) -> World:
    """Allocate n worlds with room for ``n_requests`` arrivals per episode."""
    rules = records((n,), rules_t)
    rules[:] = (0.0, 2.0, 2000.0, np.inf)
    return World(
        records((n,), episode_t),
        records((n, n_streams), run_t),
        records((n, n_requests), request_t),
        rules,
        records((n,), preemption_t),
        records((n,), memory_t),
        records((n, n_models), residency_t),
    )


class SimArrays(NamedTuple):
    """All that compiled code needs of N simulated worlds: what the schedulers know and were told, and what is true."""

    state: SchedState
    tables: Tables
    world: World
    truth: Truth
