"""Routers on the simulated cluster: a cluster of one is the simulator, requests are conserved, and quotes place better."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.evaluation.rollout import run
from agents.evaluation.statistics import violations, weighted_rate
from agents.evaluation.suites import workload_for
from agents.policies.registry import make_policy
from agents.routing.__main__ import ALL, RoutingConfig, compare, digest, main
from agents.routing.registry import router, routers
from agents.routing.simulate import ClusterConfig, ClusterRun, run_cluster
from envs.cluster.foretell import batches_ms, in_flight_ms, plain_and_growth_ms, plain_ms, requests_left, work_ms
from envs.cluster.ledger import End, Report, Routed, answered, forget, make_ledger, send, told
from envs.profiles.profile import Profile
from envs.scheduling.state import HIGH, LOW
from envs.simulation.capacity import measure_capacity
from envs.simulation.simulator import Simulator
from traces.workload import Workload, WorkloadConfig

PROFILE = Profile.load("gpu-v100")
TABLES = PROFILE.tables()
SOLO_MS = (TABLES.h2d + TABLES.solo + TABLES.d2h)[0, :, 0]
BATCH_MS = [batches_ms(TABLES, model, 1) for model in range(len(PROFILE.models))]
A100 = Profile.load("gpu-a100")
COLUMNS = ("arrival", "start", "finish", "outcome", "batch", "model", "priority")


def workload_at(load: float, n: float, duration_ms: float, seed: int, profile: Profile = PROFILE) -> Workload:
    rate = load * n * measure_capacity(profile)
    return workload_for("bursty", rate, duration_ms, profile, WorkloadConfig(), seed)


def cluster_of(
    config: ClusterConfig, name: str, workload: Workload, seed: int = 1, policy: str = "strait"
) -> ClusterRun:
    return run_cluster(PROFILE, config, make_policy(policy), router(name), workload, seed)


@pytest.mark.parametrize("policy", ["strait", "edf", "clockwork", "triton"])
@pytest.mark.parametrize("profile_name", ["gpu-v100", "cpu2-served"])
def test_a_cluster_of_one_is_the_simulator_bit_for_bit(policy: str, profile_name: str) -> None:
    profile = Profile.load(profile_name)
    workload = workload_at(1.1, 1, 3000.0, 5, profile)
    alone = Simulator(profile, n_requests=len(workload))
    run(alone, make_policy(policy), [workload], [7])
    cluster = run_cluster(profile, ClusterConfig(1), make_policy(policy), router("quote"), workload, 7)
    for column in COLUMNS:
        np.testing.assert_array_equal(alone.world.request[0][column], cluster.sim.world.request[0][column])


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(sorted(routers())),
    accelerators=st.integers(1, 9),
    doors=st.integers(1, 3),
    delays=st.tuples(st.floats(0, 20), st.floats(0, 60)),
    load=st.floats(0.1, 2.0),
    slow_share=st.sampled_from([0.0, 0.5]),
    memory=st.sampled_from([0, 1, 3]),
    seed=st.integers(0, 2**32),
)
def test_each_request_goes_to_one_replica_and_ends_there_once(
    name: str,
    accelerators: int,
    doors: int,
    delays: tuple[float, float],
    load: float,
    slow_share: float,
    memory: int,
    seed: int,
) -> None:
    config = ClusterConfig(
        accelerators, 4, doors, *delays, slow_share=slow_share, models_in_memory=memory, load_ms=20.0
    )
    workload = workload_at(load, accelerators, 150.0, seed)
    done = cluster_of(config, name, workload, seed)
    arrival, episode = done.cluster.arrival, done.sim.world.episode
    assert done.count.sum() == len(workload) == episode["n"].sum()
    assert done.count[:, 0].sum() == 0  # nothing waits
    assert len({(int(a["replica"]), int(a["id"])) for a in arrival}) == len(workload)
    for a in arrival[:50]:
        request = done.sim.world.request[a["replica"], a["id"]]
        assert request["arrival"] == a["time"] + delays[0]
        assert (request["deadline"], request["model"], request["priority"]) == (
            a["deadline"],
            a["model"],
            a["priority"],
        )
        assert request["finish"] >= request["arrival"]
    # All answers were heard, so that nothing is outstanding in any ledger.
    ledger = done.cluster.ledger
    assert (ledger.count == 0).all() and (ledger.replica["outstanding"] == 0).all()
    assert ledger.sent.sum() == len(workload)


def test_the_same_run_twice_is_the_same() -> None:
    workload = workload_at(1.0, 4, 300.0, 2)
    first, second = (cluster_of(ClusterConfig(4, answer_delay_ms=5.0), "quote", workload) for _ in range(2))
    np.testing.assert_array_equal(first.cluster.arrival["replica"], second.cluster.arrival["replica"])
    np.testing.assert_array_equal(first.count, second.count)


@pytest.mark.parametrize("name", sorted(routers()))
def test_a_lost_replica_gets_nothing_and_the_last_one_all(name: str) -> None:
    ledger = make_ledger(1, 3, len(PROFILE.models))
    kind = router(name)
    for lost in (1, 0, 2):
        forget(ledger, 0, lost)
        for draw in range(40):
            chosen = kind.route(ledger, TABLES, 0, Routed(0.0, draw % 2, 0, 50.0), np.uint64(draw))
            assert chosen == -1 if lost == 2 else ledger.replica["up"][0, chosen] == 1


def test_a_replica_that_says_it_is_slow_gets_less() -> None:
    none = np.zeros((2, len(PROFILE.models)), np.int32)
    work = []
    for slowdown in (0.0, math.log(2.5)):
        ledger = make_ledger(1, 2, len(PROFILE.models))
        told(ledger, 0, 1, 0.0, Report(slowdown, 0, 0.0, none))
        for draw in range(200):
            request = Routed(0.0, LOW, draw % len(PROFILE.models), 1e4)
            send(ledger, TABLES, 0, router("quote").route(ledger, TABLES, 0, request, np.uint64(draw)), request)
        work.append(work_ms(ledger, TABLES, 0, 1, LOW, 0.0) / work_ms(ledger, TABLES, 0, 0, LOW, 0.0))
    assert work[0] == pytest.approx(1.0, abs=0.15) and work[1] == pytest.approx(1 / 2.5, abs=0.15)


def test_the_ledger_learns_what_all_replicas_take_longer_or_shorter() -> None:
    ledger = make_ledger(1, 2, len(PROFILE.models))
    for i in range(600):
        for priority, factor in ((HIGH, 0.5), (LOW, 2.0)):
            request = Routed(float(i), priority, 0, i + 50.0)
            plain = send(ledger, TABLES, 0, i % 2, request)
            answered(ledger, 0, i % 2, request, plain, End(factor * plain, factor * plain, 1))
    np.testing.assert_allclose(ledger.log_bias[0], [math.log(0.5), math.log(2.0)], atol=0.05)


def test_requests_that_are_late_everywhere_are_spread_however_few_a_replica_has() -> None:
    ledger = make_ledger(1, 4, len(PROFILE.models))
    longest = int(np.argmax(TABLES.solo[0, :, 0]))
    shortest = int(np.argmin(TABLES.solo[0, :, 0]))
    for replica in range(4):
        for _ in range(3 if replica == 0 else 40):
            send(ledger, TABLES, 0, replica, Routed(0.0, LOW, longest if replica == 0 else shortest, 1e-3))
    chosen = [
        router("quote").route(ledger, TABLES, 0, Routed(0.0, LOW, 0, 1e-3), np.uint64(draw)) for draw in range(400)
    ]
    assert np.bincount(chosen, minlength=4).max() < 250


@pytest.mark.parametrize("waiting", [HIGH, LOW])
@pytest.mark.parametrize("priority", [HIGH, LOW])
def test_a_request_costs_less_where_it_joins_a_batch_of_its_model_of_either_priority(
    waiting: int, priority: int
) -> None:
    ledger = make_ledger(1, 2, len(PROFILE.models))
    for model in range(len(PROFILE.models)):
        request = Routed(0.0, priority, model, 1e4)
        idle = plain_and_growth_ms(ledger, TABLES, 0, 1, request)[1]
        send(ledger, TABLES, 0, 0, Routed(0.0, waiting, model, 1e4))
        assert plain_and_growth_ms(ledger, TABLES, 0, 0, request)[1] < idle


@pytest.mark.parametrize("priority", [HIGH, LOW])
def test_a_request_costs_less_where_it_joins_a_batch_that_other_doors_began(priority: int) -> None:
    ledger, none, some = make_ledger(2, 2, len(PROFILE.models)), np.zeros((2, len(PROFILE.models)), np.int32), None
    for model in range(len(PROFILE.models)):
        some = none.copy()
        some[HIGH, model] = 1
        told(ledger, 0, 0, 0.0, Report(0.0, 0, 0.0, some))
        told(ledger, 0, 1, 0.0, Report(0.0, 0, 0.0, none))
        request = Routed(0.0, priority, model, 1e4)
        assert (
            plain_and_growth_ms(ledger, TABLES, 0, 0, request)[1]
            < plain_and_growth_ms(ledger, TABLES, 0, 1, request)[1]
        )
        assert ledger.count.max() == 0, "it is not this door's own"


def test_what_is_left_in_flight_passes_as_the_replica_foretold_and_holds_requests_up() -> None:
    ledger, none = make_ledger(1, 2, len(PROFILE.models)), np.zeros((2, len(PROFILE.models)), np.int32)
    told(ledger, 0, 0, 5.0, Report(0.0, 2, 10.0, none))
    for now, left in ((5.0, 10.0), (6.0, 8.0), (10.0, 0.0), (20.0, 0.0)):
        assert in_flight_ms(ledger, 0, 0, now) == pytest.approx(left)
        for priority in (HIGH, LOW):
            plain = [plain_ms(ledger, TABLES, 0, one, Routed(now, priority, 0, 1e4)) for one in (0, 1)]
            assert plain[0] - plain[1] == pytest.approx(max(left - (SOLO_MS[0] - BATCH_MS[0]), 0.0))
    forget(ledger, 0, 0)
    assert in_flight_ms(ledger, 0, 0, 5.0) == 0.0


@pytest.mark.parametrize("sooner", [0, 1])
def test_requests_go_where_the_batches_in_flight_end_sooner(sooner: int) -> None:
    ledger, none = make_ledger(1, 2, len(PROFILE.models)), np.zeros((2, len(PROFILE.models)), np.int32)
    for replica in (0, 1):
        told(ledger, 0, replica, 0.0, Report(0.0, 1, 1.0 if replica == sooner else 20.0, none))
    for priority, model in itertools.product((HIGH, LOW), range(len(PROFILE.models))):
        request = Routed(0.0, priority, model, 100.0)
        assert router("quote").route(ledger, TABLES, 0, request, np.uint64(0)) == sooner


def test_what_waits_ahead_of_a_request_is_high_priority_and_what_is_due_before_it() -> None:
    longest = int(np.argmax(SOLO_MS))
    for waiting, priority, slack_ms, share in (
        (HIGH, HIGH, 400.0, 1.0),
        (HIGH, HIGH, 100.0, 0.5),
        (HIGH, LOW, 100.0, 1.0),
        (LOW, LOW, 100.0, 0.5),
        (LOW, LOW, 200.0, 1.0),
    ):
        ledger = make_ledger(1, 2, len(PROFILE.models))
        for _ in range(10):
            send(ledger, TABLES, 0, 0, Routed(0.0, waiting, longest, 200.0))
        other = (longest + 1) % len(PROFILE.models)
        plain = [plain_ms(ledger, TABLES, 0, one, Routed(0.0, priority, other, slack_ms)) for one in (0, 1)]
        assert plain[0] - plain[1] == pytest.approx(share * batches_ms(TABLES, longest, 10), abs=SOLO_MS[other])
        assert plain[1] == pytest.approx(SOLO_MS[other])


def test_low_priority_that_waits_holds_high_up_for_half_a_mean_batch_at_most() -> None:
    ledger = make_ledger(1, 2, len(PROFILE.models))
    longest, mean_ms = int(np.argmax(SOLO_MS)), float(TABLES.device[0]["unit_ms"])
    for n in range(1, 4):
        send(ledger, TABLES, 0, 0, Routed(0.0, LOW, longest, 200.0))
        held = [plain_ms(ledger, TABLES, 0, one, Routed(0.0, HIGH, 0, 50.0)) for one in (0, 1)]
        assert held[0] - held[1] == pytest.approx(0.5 * min(mean_ms, batches_ms(TABLES, longest, n)), rel=0.3)


@pytest.mark.parametrize(("age_ms", "chosen"), [(0.0, 0), (1000.0, 1)])
def test_replicas_with_little_to_do_fill_up_one_after_the_other_unless_answers_are_late(
    age_ms: float, chosen: int
) -> None:
    ledger, known = make_ledger(1, 2, len(A100.models)), A100.tables()
    some, own = A100.index("bert-8"), A100.index("bert-64")
    send(ledger, known, 0, 0, Routed(0.0, HIGH, some, 100.0))
    ledger.stay_ms[:] = 10.0
    ledger.replica["age_ms"] = age_ms
    for priority in (HIGH, LOW):
        request = Routed(0.0, priority, own, 100.0)
        assert router("quote").route(ledger, known, 0, request, np.uint64(0)) == chosen


def test_what_is_cancelled_takes_no_work_of_others_along() -> None:
    ledger = make_ledger(1, 1, len(PROFILE.models))
    longest, shortest = int(np.argmax(TABLES.solo[0, :, 0])), int(np.argmin(TABLES.solo[0, :, 0]))
    for i in range(200):  # answers that are 50 ms on their way
        request = Routed(float(i), LOW, shortest, i + 100.0)
        answered(ledger, 0, 0, request, send(ledger, TABLES, 0, 0, request), End(51.0, 1.0, 1))
    first = Routed(200.0, LOW, longest, 300.0)
    plain = send(ledger, TABLES, 0, 0, first)
    for _ in range(4):
        send(ledger, TABLES, 0, 0, Routed(250.0, LOW, shortest, 350.0))
    before = work_ms(ledger, TABLES, 0, 0, LOW, 250.0)
    answered(ledger, 0, 0, first, plain, End(50.0, 0.0, -1))
    assert 0.0 < work_ms(ledger, TABLES, 0, 0, LOW, 250.0) <= before


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(st.tuples(st.floats(0.0, 20.0), st.booleans(), st.integers(0, 3), st.integers(0, 1)), max_size=80),
    age_ms=st.sampled_from([0.0, 3.0, 50.0]),
)
def test_what_is_left_is_at_most_what_was_not_answered_and_all_of_it_where_answers_come_at_once(
    steps: list[tuple[float, bool, int, int]], age_ms: float
) -> None:
    models = range(len(PROFILE.models))
    ledger, now, waiting = make_ledger(1, 1, len(PROFILE.models)), 0.0, []
    for passed, sends, model, priority in steps:
        now += passed
        if sends or not waiting:
            request = Routed(now, priority, model, now + 50.0)
            waiting.append((request, send(ledger, TABLES, 0, 0, request)))
        else:
            request, plain = waiting.pop(0)
            inside_ms = max(now - request.now - age_ms, 0.0)
            # The last of four was cancelled.
            executed = -1 if model == 3 else 1
            answered(ledger, 0, 0, request, plain, End(inside_ms + age_ms, inside_ms, executed))
        for one in (HIGH, LOW):
            there = [sum(r.model == m and r.priority <= one for r, _ in waiting) for m in models]
            left = [requests_left(ledger, 0, 0, m, now)[one] for m in models]
            later = [requests_left(ledger, 0, 0, m, now + 5.0)[one] for m in models]
            for known, likely, then in zip(there, left, later):
                assert 0.0 <= then <= likely + 1e-9 and likely <= known + 1e-9
                assert likely == known or ledger.replica["age_ms"][0, 0] > 0.0
            assert waiting or work_ms(ledger, TABLES, 0, 0, one, now) == 0.0


def test_requests_whose_answers_are_long_on_their_way_are_taken_to_leave_as_others_did() -> None:
    ledger = make_ledger(1, 1, len(PROFILE.models))
    for i in range(200):  # each stays for 10 ms, and its answer takes 500
        request = Routed(float(i), LOW, 0, i + 100.0)
        answered(ledger, 0, 0, request, send(ledger, TABLES, 0, 0, request), End(510.0, 10.0, 1))
    for _ in range(8):
        send(ledger, TABLES, 0, 0, Routed(5000.0, LOW, 0, 5100.0))
    for later_ms, least, most in ((0.0, 7.9, 8.0), (5.0, 3.0, 7.0), (100.0, 0.0, 0.1)):
        assert least <= requests_left(ledger, 0, 0, 0, 5000.0 + later_ms)[LOW] <= most


@pytest.mark.parametrize("share", [1.0, 0.5, 0.0])
def test_batches_that_the_host_launches_slowly_leave_the_device_to_others(share: float) -> None:
    tables = TABLES._replace(share=np.full_like(TABLES.share, share))
    for model, n in itertools.product(range(len(PROFILE.models)), (1, 3, 32, 40)):
        whole = batches_ms(TABLES._replace(share=np.ones_like(TABLES.share)), model, n)
        assert batches_ms(tables, model, n) == pytest.approx(whole * max(share, 0.25))


def weighted(name: str, config: ClusterConfig, load: float, seed: int) -> float:
    rate = load * config.capacity() * measure_capacity(PROFILE)
    workload = workload_for("poisson", rate, 500.0, PROFILE, WorkloadConfig(), seed)
    return float(weighted_rate(*violations(cluster_of(config, name, workload, seed).count)))


CLUSTERS = {
    "equal": ClusterConfig(16),
    "unequal": ClusterConfig(16, slow_share=0.25),
    "late answers": ClusterConfig(16, answer_delay_ms=50.0),
}


@pytest.mark.parametrize("config", CLUSTERS.values(), ids=CLUSTERS)
def test_quotes_place_better_than_power_of_two(config: ClusterConfig) -> None:
    gained = [weighted("power_of_two", config, 0.95, s) - weighted("quote", config, 0.95, s) for s in (1, 2)]
    assert min(gained) > 0.002


@pytest.mark.parametrize(("measured", "share"), [(True, 0.6), (False, 0.75)])
def test_high_priority_is_late_less_often_beside_a_slow_replica(measured: bool, share: float) -> None:
    config = ClusterConfig(2, slow_share=0.5, slow_factor=2.5, slow_measured=measured)
    rate = 0.65 * config.capacity() * measure_capacity(PROFILE)
    high = {"quote": 0, "power_of_two": 0}
    for name in high:
        for seed in (1, 2, 3):
            workload = workload_for("poisson", rate, 3000.0, PROFILE, WorkloadConfig(), seed)
            high[name] += violations(cluster_of(config, name, workload, seed).count)[0][HIGH]
    assert high["quote"] < share * high["power_of_two"]


def test_rows_of_all_workloads_are_over_the_runs_of_each() -> None:
    frame = compare(
        RoutingConfig(accelerators=2, routers=["random", "power_of_two"], loads=[0.9], seeds=2, duration_ms=80)
    )
    rows = {(row["workload"], row["router"]): row for row in digest(frame)}
    assert len(rows) == 6
    for router_name in ("random", "power_of_two"):
        for rate in ("high", "low", "weighted"):
            each = [rows[workload, router_name][rate] for workload in ("poisson", "bursty")]
            assert rows[ALL, router_name][rate] == pytest.approx(np.mean(each))
    each = [rows[workload, "random"]["difference"][1] for workload in ("poisson", "bursty")]
    assert rows[ALL, "random"]["difference"][1] == pytest.approx(np.mean(each))
    assert ALL not in {row["workload"] for row in digest(frame[frame["workload"] == "poisson"])}


def test_the_command_prints_a_table_and_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--accelerators", "3", "--seeds", "2", "--duration_ms", "80", "--loads", "0.9", "--workloads", "poisson"]
    assert main(flags) == 0
    whole = capsys.readouterr().out
    *lines, last = whole.splitlines()
    assert len(lines) == 1 + len(routers())
    rows = {row["router"]: row for row in json.loads(last)["routers"]}
    assert set(rows) == set(routers())
    low, mean, high = rows["quote"]["difference"]
    assert low <= mean <= high
    assert main([*flags, "--workers", "1"]) == 0
    assert capsys.readouterr().out == whole
    assert main([*flags, "--routers", "nearest"]) == 2
    assert "unknown router 'nearest'" in capsys.readouterr().err
