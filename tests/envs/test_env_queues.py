"""Simple queues as limits of the world, within 1 % of their closed forms (Kleinrock, Queueing Systems, vol. 1, 1975).

One model, batches of one, no copies, no deadlines that bind: with K streams and no interference it is M/M/K or M/D/1, with
one core that many streams share it is processor sharing.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from agents.evaluation.rollout import run
from agents.policies.registry import make_policy
from envs.profiles.profile import Profile
from envs.scheduling.state import N_DEMAND, N_FEATURES
from envs.simulation.simulator import Simulator
from traces.workload import Workload

pytestmark = pytest.mark.slow

SEEDS = 10
SERVICE_MS = 1.0
FREE = 1e-9  # a copy or a dispatch that costs nothing to speak of


def one_model(cores: float, streams: int) -> Profile:
    """A device with one model that executes for SERVICE_MS on the mean; ``cores`` 0: nothing slows anything."""
    count = np.maximum(np.arange(streams + 1) / cores, 1.0) if cores else np.ones(streams + 1)
    prior = np.zeros(N_FEATURES)
    prior[0] = 1.0
    return Profile(
        name="one",
        models=("one",),
        batch_sizes=(1,),
        cores=cores,
        solo_ms=np.full((1, 1), SERVICE_MS),
        h2d_ms=np.full((1, 1), FREE),
        d2h_ms=np.full((1, 1), FREE),
        demand=np.zeros((1, 1, N_DEMAND)),
        share=np.ones((1, 1)),
        weight=prior,
        cov=1e-6 * np.eye(N_FEATURES),
        count=count,
        pair=np.zeros((1, 1)),
        residual=np.zeros(1),
        dispatch_ms=FREE,
    )


def exponential(places: int = 1 << 16) -> np.ndarray:
    """Quantiles of the unit exponential in the middle of equal shares, with mean exactly 1."""
    q = -np.log1p(-(np.arange(places) + 0.5) / places)
    return q / q.mean()


def two_point(low: float, high: float, share: float, places: int = 1000) -> np.ndarray:
    """Execution times that are ``high`` with probability ``share``, else ``low``; mean 1."""
    times = np.where(np.arange(places) < share * places, high, low)
    return times / times.mean()


def mean_sojourn_ms(
    rho: float, streams: int, times: np.ndarray, cores: float = 0.0, requests: int = 100_000
) -> np.ndarray:
    """(SEEDS,) mean time from arrival to end at utilisation ``rho`` of all servers, after a tenth for warming up."""
    profile = one_model(cores, streams)
    truth = profile.truth(streams)._replace(residual=times[None])
    sim = Simulator(profile, 1, streams, requests, queue_places=8192, truth=truth)
    servers = cores if cores else streams
    policy = make_policy("fifo", drop=0.0)
    means = []
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        arrival = np.cumsum(rng.exponential(SERVICE_MS / (rho * servers), requests))
        zero = np.zeros(requests, np.int32)
        workload = Workload(arrival, zero, zero.astype(np.int8), np.full(requests, 1e9), ("one",))
        run(sim, policy, [workload], [seed])
        request = sim.world.request[0]
        assert sim.state.count[0, :, 1].sum() == requests, "some request did not end in time"
        means.append(np.mean((request["finish"] - request["arrival"])[requests // 10 :]))
    return np.array(means)


def erlang_c(k: int, offered: float) -> float:
    """Probability that an arrival waits in M/M/k."""
    term = offered**k / math.factorial(k) * k / (k - offered)
    return term / (sum(offered**i / math.factorial(i) for i in range(k)) + term)


def close(means: np.ndarray, expected: float) -> None:
    assert abs(means.mean() / expected - 1) < 0.01, f"{means.mean():.4f} ms, closed form {expected:.4f} ms"
    spread = means.std(ddof=1) / math.sqrt(len(means))
    assert spread < 0.005 * expected, "too noisy a sample for a bound of 1 %"


@pytest.mark.parametrize("rho", [0.3, 0.5])
def test_one_server_with_exponential_times_is_mm1(rho: float) -> None:
    close(mean_sojourn_ms(rho, 1, exponential()), SERVICE_MS / (1 - rho))


@pytest.mark.parametrize("rho", [0.3, 0.6])
def test_one_server_with_constant_times_is_md1(rho: float) -> None:
    close(mean_sojourn_ms(rho, 1, np.ones(1)), SERVICE_MS * (1 + rho / (2 * (1 - rho))))


@pytest.mark.parametrize(("k", "rho"), [(2, 0.5), (4, 0.6)])
def test_k_streams_without_interference_are_mmk(k: int, rho: float) -> None:
    wait = erlang_c(k, k * rho) * SERVICE_MS / (k * (1 - rho))
    close(mean_sojourn_ms(rho, k, exponential()), SERVICE_MS + wait)


@pytest.mark.parametrize(
    "times",
    [np.ones(1), exponential(), two_point(0.5, 5.0, 0.1)],
    ids=["constant", "exponential", "two-point"],
)
def test_one_core_shared_by_many_streams_is_processor_sharing(times: np.ndarray) -> None:
    """M/G/1-PS: the mean depends on the mean execution time alone."""
    rho = 0.5
    # 40 in the system at half load: probability 0.5 ** 40.
    close(mean_sojourn_ms(rho, 40, times, cores=1.0), SERVICE_MS / (1 - rho))


def test_first_come_first_served_is_not_insensitive() -> None:
    """M/G/1 by Pollaczek and Khinchine: here the second moment counts, which tells it from processor sharing."""
    times, rho = two_point(0.5, 5.0, 0.1), 0.5
    second = np.mean(times**2)
    close(mean_sojourn_ms(rho, 1, times), SERVICE_MS * (1 + rho * second / (2 * (1 - rho))))
