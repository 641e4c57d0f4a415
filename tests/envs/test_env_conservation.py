"""Conservation: every request ends exactly once, time never goes back, queues and streams hold what they say they hold."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envs.profiles.profile import synthetic_profile
from envs.scheduling.candidates import action_of, valid
from envs.scheduling.operations import complete, dispatch, enqueue, fail
from envs.scheduling.state import DROPPED, FAILED, HIGH, LATE, LOW, MET, WAITING, SchedState
from envs.simulation.config import EnvConfig, RandomiseConfig
from envs.simulation.simulator import Simulator
from envs.simulation.worlds import Worlds, world_seed
from traces.workload import Workload

MODELS, STREAMS, PLACES, ROOM = 3, 3, 6, 200
PROFILE = synthetic_profile(MODELS)
SIM = Simulator(PROFILE, 1, STREAMS, ROOM, PLACES)

requests = st.lists(
    st.tuples(
        st.floats(0.0, 60.0),  # arrival
        st.integers(0, MODELS - 1),
        st.integers(0, 1),
        st.floats(0.01, 100.0),  # deadline
    ),
    max_size=60,
)


def workload(rows: list[tuple[float, int, int, float]]) -> Workload:
    rows = sorted(rows)
    arrival, model, priority, deadline = (np.array(c) for c in zip(*rows)) if rows else (np.zeros(0),) * 4
    return Workload(
        arrival.astype(float), model.astype(np.int32), priority.astype(np.int8), deadline.astype(float), PROFILE.models
    )


def check_state(state: SchedState, e: int = 0) -> None:
    """What is queued, in flight and free adds up, and queues are in order of arrival."""
    env, places = state.scheduler[e], state.entry.shape[3]
    length = state.queue["length"][e]
    assert np.all((length >= 0) & (length <= places))
    assert env.n_queued == length.sum()
    assert env.n_free == (state.stream["busy"][e] == 0).sum()
    for p in range(2):
        for m in range(length.shape[1]):
            at = (state.queue["head"][e, p, m] + np.arange(length[p, m])) % places
            entry = state.entry[e, p, m, at]
            assert np.all(np.diff(entry["id"]) > 0) and np.all(np.diff(entry["arrival"]) >= 0)
            assert np.all(entry["arrival"] <= env.now)
    busy = np.flatnonzero(state.stream["busy"][e])
    ids = [state.member["id"][e, k, : state.stream["n"][e, k]] for k in busy]
    flat = np.concatenate(ids) if ids else np.zeros(0)
    assert len(set(flat.tolist())) == len(flat), "a request is in two batches"
    assert np.all(state.stream["start"][e, busy] <= env.now)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    rows=requests,
    seed=st.integers(0, 2**63),
    drop=st.sampled_from([0.0, 1.0, 3.0]),
    grace=st.sampled_from([np.inf, 5.0]),
    data=st.data(),
)
def test_any_workload_under_any_actions_is_conserved(
    rows: list, seed: int, drop: float, grace: float, data: st.DataObject
) -> None:
    arrivals, sim = workload(rows), SIM
    sim.load([arrivals])
    sim.world.rules[:] = (drop, 1.0, 100.0, grace)
    sim.world.preemption[:] = data.draw(st.sampled_from([(0.0, 0.0, 0.0, 0.0), (1.0, 0.3, 0.05, 0.2)]))
    sim.limit_memory(data.draw(st.integers(0, MODELS)), data.draw(st.sampled_from([0.0, 3.0, 40.0])))
    mixed = data.draw(st.booleans())
    sim.tables.device["mixed_batches"] = mixed
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    # Actions are drawn valid or not.
    defer_share = data.draw(st.sampled_from([0.0, 0.3, 0.9]))
    sim.begin([seed])
    x, env, request = sim.world.episode[0], sim.state.scheduler[0], sim.world.request[0]
    time, ended = 0.0, np.zeros(len(arrivals), int)
    steps = 0
    while x.done == 0:
        check_state(sim.state)
        assert env.now >= time
        time = float(env.now)
        action = sim.n_actions - 1 if rng.random() < defer_share else int(rng.integers(-1, sim.n_actions + 1))
        wake = time + rng.choice([0.0, 0.01, 1.0, np.inf])
        sim.step(np.array([action]), np.array([wake]))
        outcome = request["outcome"][: len(arrivals)]
        assert np.all((ended == WAITING) | (ended == outcome)), "an outcome changed"
        ended = outcome.copy()
        steps += 1
        assert steps < 100_000
    check_state(sim.state)
    ended = request["outcome"][: len(arrivals)].copy()
    assert set(ended.tolist()) <= {MET, LATE, DROPPED}
    assert sim.state.count[0].sum() == len(arrivals)
    assert env.n_queued == 0 and env.n_free == STREAMS and env.n_ended == 0
    assert time <= env.now
    done = request[: len(arrivals)]
    for o in (MET, LATE):
        mine = done[ended == o]
        assert np.all(mine["start"] >= mine["arrival"]) and np.all(mine["finish"] > mine["start"])
        assert np.all((mine["finish"] <= mine["deadline"]) == (o == MET))
    dropped = done[ended == DROPPED]
    assert np.all(np.isnan(dropped["start"])) and np.all(dropped["batch"] == -1)
    assert np.all(dropped["finish"] >= dropped["arrival"])
    for p in range(2):
        mine = done["priority"] == p
        for o in (MET, LATE, DROPPED):
            assert sim.state.count[0, p, o] == (ended[mine] == o).sum()
    # A batch is of one model, at a size of the grid. It takes low priority along only where no high priority is left behind.
    for batch in set(done["batch"].tolist()) - {-1}:
        mine = done[done["batch"] == batch]
        assert len(set(mine["model"].tolist())) == 1
        assert len(mine) in PROFILE.batch_sizes
        if len(set(mine["priority"].tolist())) == 2:
            assert mixed
            start = mine["start"][0]
            high = done[(done["priority"] == HIGH) & (done["model"] == mine["model"][0]) & (done["arrival"] < start)]
            assert not np.any(high["start"] > start)
            assert not np.any(np.isnan(high["start"]) & (high["finish"] > start))


@pytest.mark.parametrize(("end", "outcome"), [("complete", MET), ("fail", FAILED)])
def test_a_batch_of_high_priority_takes_low_priority_of_its_model_along(end: str, outcome: int) -> None:
    sim = Simulator(PROFILE, 1, STREAMS, ROOM, PLACES)
    state, tables = sim.state, sim.tables
    sim.load([workload([])])
    sim.begin([0])
    for id_, (priority, model) in enumerate([(LOW, 1), (HIGH, 1), (LOW, 1), (HIGH, 1), (LOW, 1), (LOW, 0)]):
        assert enqueue(state, tables, 0, 0.0, priority, model, id_, 1e6 + id_)
    sizes = list(PROFILE.batch_sizes)

    def can(priority: int, model: int, n: int) -> bool:
        return bool(valid(state, tables, 0, action_of(tables, MODELS, priority, model, sizes.index(n))))

    assert can(HIGH, 1, 4) and not can(HIGH, 1, 8), "two of high and three of low priority are queued"
    assert can(LOW, 1, 2) and not can(LOW, 1, 4), "a batch of low priority holds no other"
    assert not can(HIGH, 0, 1), "without high priority there is no batch of it"
    stream = dispatch(state, tables, 0, action_of(tables, MODELS, HIGH, 1, sizes.index(4)))
    batch = state.stream[0, stream]
    assert state.member["id"][0, stream, :4].tolist() == [1, 3, 0, 2], "high priority first, each in order of arrival"
    assert (batch.priority, batch.n, batch.n_high, batch.deadline) == (HIGH, 4, 2, 1e6)
    check_state(state)
    if end == "complete":
        complete(state, tables, 0, 10.0, stream, 9.0)
    else:
        fail(state, tables, 0, 10.0, stream)
    assert state.count[0, HIGH, outcome] == state.count[0, LOW, outcome] == 2
    assert state.ended["priority"][0, :4].tolist() == [HIGH, HIGH, LOW, LOW]
    check_state(state)


def play_episodes(n: int, per_world: int, seed: int) -> tuple[bytes, int]:
    """``per_world`` random episodes in each of n worlds; checks each at its end. Digest of all shown, and episodes."""
    config = EnvConfig(
        duration_ms=(50.0, 300.0),
        load=(0.3, 2.0),
        end_ms=100.0,
        randomise=RandomiseConfig(solo_error=0.2, min_streams=1),
    )
    worlds = Worlds(config, n)
    worlds.reset(np.array([world_seed(seed + i) for i in range(n)], np.uint64))
    rng = np.random.default_rng(seed)
    digest = hashlib.sha256()
    episodes, offered, now = np.zeros(n, int), worlds.sim.world.episode["n"].copy(), np.zeros(n)
    while episodes.min() < per_world:
        # The largest random number among valid actions is a random valid action.
        actions = np.argmax(rng.random(worlds.masks.shape, np.float32) * worlds.masks, axis=1)
        worlds.step(actions)
        out, done = worlds.out, worlds.out.done
        assert np.all(out.dt >= 0)
        assert np.array_equal(out.final_count[done].sum(axis=(1, 2)), offered[done]), "not every request ended once"
        assert np.all(out.final_count[done][:, :, WAITING] == 0)
        assert np.all(worlds.sim.state.scheduler["now"][~done] >= now[~done]), "time went back"
        now = worlds.sim.state.scheduler["now"].copy()
        offered = worlds.sim.world.episode["n"].copy()
        episodes += done
        for part in (worlds.obs, worlds.masks, out.reward, out.dt, done, worlds.sim.state.count):
            digest.update(np.ascontiguousarray(part).tobytes())
    return digest.digest(), int(episodes.sum())


@pytest.mark.slow
def test_a_thousand_random_episodes_conserve_and_repeat() -> None:
    first, episodes = play_episodes(125, 8, seed=0)
    assert episodes >= 1000
    again, _ = play_episodes(125, 8, seed=0)
    assert again == first


def test_empty_workload_is_done_at_once() -> None:
    SIM.load([workload([])])
    SIM.begin([0])
    assert SIM.done[0] and SIM.state.count[0].sum() == 0


def test_what_is_late_by_the_grace_is_dropped_undispatched() -> None:
    SIM.load([workload([(0.0, 0, 1, 1.0)])])
    SIM.world.rules[:] = (0.0, 1.0, 100.0, 5.0)
    SIM.world.preemption[:] = (0.0, 0.0, 0.0, 0.0)
    for wake, done in ((5.9, False), (6.1, True)):
        SIM.begin([0])
        SIM.step(np.array([SIM.n_actions - 1]), np.array([wake]))
        assert SIM.done[0] == done, "it waits until its deadline and the grace have passed"
    assert SIM.state.count[0, 1, DROPPED] == 1
    assert np.allclose(SIM.world.request[0, :1]["finish"], 6.1, atol=0.05)


def test_ended_as_served_nothing_is_dropped_before_its_grace_for_want_of_arrivals() -> None:
    rows = workload([(0.0, 0, 1, 1.0), (10.0, 0, 1, 1.0)])
    SIM.load([rows])
    SIM.world.rules["drop_scale"], SIM.world.rules["defer_ms"] = 0.0, 1.0
    SIM.end_as_served(rows, 5.0)
    SIM.world.preemption[:] = (0.0, 0.0, 0.0, 0.0)
    SIM.begin([0])
    while not SIM.done[0]:
        SIM.step(np.array([SIM.n_actions - 1]), np.array([np.inf]))
    assert SIM.state.count[0, 1, DROPPED] == 2
    assert SIM.world.request[0, :2]["finish"].tolist() == [10.0, 16.0], "with the next event, and at the end"


def test_full_queue_refuses() -> None:
    n = PLACES + 4
    SIM.load([workload([(0.0, 0, 1, 0.01)] * n)])
    SIM.world.rules[:] = (0.0, 1.0, 100.0, np.inf)
    SIM.world.preemption[:] = (0.0, 0.0, 0.0, 0.0)
    SIM.begin([0])
    while not SIM.done[0]:
        SIM.step(np.array([SIM.n_actions - 1]), np.array([np.inf]))
    assert SIM.state.count[0, 1, DROPPED] == n
    finish = np.sort(SIM.world.request[0, :n]["finish"])
    # Those that found no place ended at once, the others when the world stopped to dispatch.
    assert np.all(finish[:4] == 0.0) and np.all(finish[4:] == 100.0)
