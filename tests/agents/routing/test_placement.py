"""Models that do not all fit a replica's memory: replicas begin with different ones, and requests go where their model is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from agents.evaluation.rollout import run
from agents.evaluation.statistics import violations
from agents.evaluation.suites import workload_for
from agents.policies.registry import make_policy
from agents.routing.registry import router, routers
from agents.routing.simulate import ClusterConfig, run_cluster
from envs.cluster.foretell import plain_and_growth_ms
from envs.cluster.ledger import Routed, forget, make_ledger, send
from envs.profiles.profile import Profile
from envs.scheduling.state import HIGH, LOW
from envs.simulation.capacity import measure_capacity
from envs.simulation.simulator import Simulator
from traces.workload import Workload, WorkloadConfig

PROFILE = Profile.load("gpu-v100")
TABLES = PROFILE.tables()
M = len(PROFILE.models)
COLUMNS = ("arrival", "start", "finish", "outcome", "batch", "model", "priority")


def workload_at(load: float, n: int, duration_ms: float = 500.0) -> Workload:
    rate = load * n * measure_capacity(PROFILE)
    return workload_for("poisson", rate, duration_ms, PROFILE, WorkloadConfig(), 3)


def test_a_cluster_of_one_is_the_simulator_bit_for_bit() -> None:
    workload = workload_at(0.9, 1, 3000.0)
    alone = Simulator(PROFILE, n_requests=len(workload))
    alone.limit_memory(2, 150.0)
    run(alone, make_policy("strait"), [workload], [7])
    config = ClusterConfig(1, models_in_memory=2, load_ms=150.0)
    cluster = run_cluster(PROFILE, config, make_policy("strait"), router("quote"), workload, 7)
    for column in COLUMNS:
        np.testing.assert_array_equal(alone.world.request[0][column], cluster.sim.world.request[0][column])


@pytest.mark.parametrize(("n", "room"), [(2, (M + 1) // 2), (3, 2), (M, 1), (2 * M, 1)])
def test_replicas_begin_with_different_models_and_together_with_all_that_fit(n: int, room: int) -> None:
    sim = Simulator(PROFILE, n)
    sim.limit_memory(room, 100.0, spread=True)
    sim.load([Workload(*(np.empty(0),) * 4, PROFILE.models)])
    sim.begin([1] * n)
    here = sim.world.residency["here"]
    assert (here.sum(axis=1) == room).all()
    assert (here.sum(axis=0) > 0).sum() == min(n * room, M)


@pytest.mark.parametrize("name", sorted(routers()))
def test_a_request_goes_where_its_model_is_and_anywhere_if_it_is_nowhere(name: str) -> None:
    ledger = make_ledger(1, 4, M)
    ledger.load_ms[:] = 500.0
    ledger.load_ms[0, 1, 0] = ledger.load_ms[0, 3, 0] = 0.0
    draws = itertools.count()

    def chosen(model: int, times: int = 60) -> set[int]:
        found = set()
        for draw in itertools.islice(draws, times):
            request = Routed(0.0, draw % 2, model, 50.0)
            replica = router(name).route(ledger, TABLES, 0, request, np.uint64(draw))
            send(ledger, TABLES, 0, replica, request)
            found.add(int(replica))
        return found

    assert chosen(0, 20) == {1, 3}
    assert chosen(1) & {0, 2}
    forget(ledger, 0, 1)
    forget(ledger, 0, 3)
    assert chosen(0) <= {0, 2}


@pytest.mark.parametrize("priority", [HIGH, LOW])
def test_the_first_request_of_a_model_adds_the_time_to_load_it_and_all_wait_for_it(priority: int) -> None:
    ledger = make_ledger(1, 1, M)
    request = Routed(0.0, priority, 0, 1e4)
    before = plain_and_growth_ms(ledger, TABLES, 0, 0, request)
    ledger.load_ms[0, 0, 0] = 300.0
    time, growth = plain_and_growth_ms(ledger, TABLES, 0, 0, request)
    assert (time, growth) == pytest.approx((before[0] + 300.0, before[1] + 300.0))
    assert plain_and_growth_ms(ledger, TABLES, 0, 0, request._replace(model=1))[0] < 300.0
    send(ledger, TABLES, 0, 0, request)
    time, growth = plain_and_growth_ms(ledger, TABLES, 0, 0, request)
    assert time > 300.0 > growth


@pytest.mark.parametrize("name", sorted(routers()))
def test_with_half_of_the_models_in_memory_few_requests_are_lost(name: str) -> None:
    config = ClusterConfig(8, models_in_memory=(M + 1) // 2, load_ms=200.0, answer_delay_ms=1.0)
    done = run_cluster(PROFILE, config, make_policy("strait"), router(name), workload_at(0.5, 8, 1000.0), 1)
    violated, total = violations(done.count)
    assert violated.sum() < 0.2 * total.sum()  # sent anywhere, half of them would be
    assert done.count[:, 0].sum() == 0
