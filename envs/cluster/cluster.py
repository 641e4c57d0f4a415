"""N simulated worlds behind a router: the worlds are those of ``envs.simulation``, a request goes into the one it is sent to.

A cluster's arrivals are one stream. Before each, every world is run up to that time and what its answers told by then is in the
ledger of the door that the request came to: so a router knows nothing before a live one would.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from envs.cluster.ledger import End, Ledger, Report, Routed, answered, send, told, write_report
from envs.profiles.truth import Truth
from envs.scheduling.jit import inlined, njit
from envs.scheduling.state import DROPPED, WAITING, Tables, records
from envs.simulation.events import begin
from envs.simulation.simulator import Simulator
from traces.workload import Workload

arrival_t = np.dtype(
    [
        ("time", "f8"),
        ("deadline", "f8"),  # absolute
        ("model", "i8"),
        ("priority", "i8"),
        ("door", "i8"),
        ("replica", "i8"),  # where it was sent
        ("id", "i8"),  # of the request in that world
        ("plain_ms", "f8"),  # as envs.cluster.ledger.send foretold
    ],
    align=True,
)
answer_t = np.dtype(
    [
        ("at", "f8"),  # when the request ended
        ("arrival", "i4"),  # which
        ("executed", "i8"),
        ("log_slowdown", "f8"),  # of its replica's report, and the next three
        ("busy", "i4"),
        ("in_flight_ms", "f8"),
        ("inside", "i4"),  # where its requests are in ``Cluster.inside``
    ],
    align=True,
)
replica_t = np.dtype(
    [
        ("next", "f8"),  # time of the world's next event
        ("told", "i4"),  # answers that reached the door
        ("n", "i4"),  # answers in all
        ("reported", "i4"),  # answers that have their report
        ("load_ms", "f8"),  # how long it takes to load a model; 0 where memory holds all
    ],
    align=True,
)


class Cluster(NamedTuple):
    """State of N simulated replicas beside their worlds.

    Attributes:
        arrival: (A,) records, all requests in order of time.
        answer: (N, R) records, the ends of each world's requests in order of time.
        inside: (N, R, 2, M) requests in the replicas, of their reports.
        here: (N, R, M) whether models were in memory, of their reports; (N, 1, M) and not used where memory holds all.
        of: (N, R) index in ``arrival`` of each world's requests.
        replica: (N,) records.
        ledger: of the doors.
        profile: tables of the profile that the router was told, whatever the replicas are (G = 1).
        delay_ms: (2,) how long a request is on its way, and how long an answer.
    """

    arrival: np.ndarray
    answer: np.ndarray
    inside: np.ndarray
    here: np.ndarray
    of: np.ndarray
    replica: np.ndarray
    ledger: Ledger
    profile: Tables
    delay_ms: np.ndarray


def make_cluster(
    sim: Simulator, ledger: Ledger, workload: Workload, profile: Tables, delay_ms: tuple[float, float]
) -> Cluster:
    """A cluster of the worlds of ``sim`` with the arrivals of a workload, spread over the doors in turn."""
    arrival = records((len(workload),), arrival_t)
    index = np.array([sim.profile.index(model) for model in workload.models], np.int32)
    arrival["time"] = workload.arrival_ms
    arrival["deadline"] = workload.arrival_ms + workload.deadline_ms
    arrival["model"] = index[workload.model] if len(workload) else 0
    arrival["priority"] = workload.priority
    arrival["door"] = np.arange(len(workload)) % len(ledger.sent)
    shape = sim.world.request.shape
    limited = bool((sim.world.memory["room"] > 0).any())
    return Cluster(
        arrival,
        records(shape, answer_t),
        np.zeros((*shape, 2, len(sim.profile.models)), np.int32),
        np.zeros((shape[0], shape[1] if limited else 1, len(sim.profile.models)), np.int8),
        np.zeros(shape, np.int32),
        records(shape[:1], replica_t),
        ledger,
        profile,
        np.array(delay_ms),
    )


def with_speeds(tables: Tables, truth: Truth, slowness: np.ndarray, measured: bool = True) -> tuple[Tables, Truth]:
    """Tables and truth of machines that take ``slowness`` (N,) times as long to execute, which they measured or must learn."""
    n = len(slowness)
    own = Tables(
        *(array if name == "size" else np.repeat(array, n, axis=0) for name, array in zip(Tables._fields, tables))
    )
    real = Truth(
        *(array if name == "log_slowdown" else np.repeat(array, n, axis=0) for name, array in zip(Truth._fields, truth))
    )
    factor = slowness[:, None, None]
    return own._replace(solo=own.solo * (factor if measured else 1.0)), real._replace(solo=real.solo * factor)


@njit
def begin_cluster(sim, cluster, seeds):
    """Begin an episode without requests in every world; it ends as if the last arrival of all had come to it."""
    n_arrivals = cluster.arrival.shape[0]
    for env in range(seeds.shape[0]):
        sim.world.episode[env].n = 0
        begin(sim, env, seeds[env])
        if n_arrivals > 0:
            sim.world.episode[env].end += cluster.arrival[n_arrivals - 1].time + cluster.delay_ms[0]
        cluster.replica[env].next = np.inf
        cluster.replica[env].told = 0
        cluster.replica[env].n = 0
        cluster.replica[env].reported = 0
        memory = sim.world.memory[env]
        cluster.replica[env].load_ms = memory.load_ms if memory.room > 0 else 0.0
        _write_here(sim, cluster, env, 0)
        for door in range(cluster.ledger.sent.shape[0]):
            _note_here(cluster, door, env, 0)


@inlined
def _write_here(sim, cluster, env, place):
    """Put which models a world has in memory where a report has it."""
    for model in range(cluster.here.shape[2]):
        cluster.here[env, place, model] = sim.world.residency[env, model].here


@inlined
def _note_here(cluster, door, env, place):
    """Note in a door's ledger what was put there."""
    for model in range(cluster.here.shape[2]):
        missing = 1 - cluster.here[env, place, model]
        cluster.ledger.load_ms[door, env, model] = missing * cluster.replica[env].load_ms


@inlined
def note_ended(sim, cluster, env):
    """Put the requests of a world that ended into its answers; to be called before they are collected."""
    own = sim.state.scheduler[env]
    if own.n_ended == 0:
        return
    replica = cluster.replica[env]
    for i in range(own.n_ended):
        ended = sim.state.ended[env, i]
        answer = cluster.answer[env, replica.n]
        answer.at = max(own.now, sim.world.request[env, ended.id].arrival)
        answer.arrival = cluster.of[env, ended.id]
        answer.executed = 0 if ended.outcome == DROPPED else 1
        replica.n += 1


@inlined
def report(sim, cluster, env):
    """Put the replica's report into the answers that have none yet; to be called when it has dispatched what it would.

    A live replica does so, too: its device goes first.
    """
    replica = cluster.replica[env]
    first = replica.reported
    if first == replica.n:
        return
    said = write_report(sim.state, sim.tables, env, sim.state.scheduler[env].now, cluster.inside[env, first])
    if replica.load_ms > 0.0:
        _write_here(sim, cluster, env, first)
    for i in range(first, replica.n):
        answer = cluster.answer[env, i]
        answer.log_slowdown = said.log_slowdown
        answer.busy = said.busy
        answer.in_flight_ms = said.in_flight_ms
        answer.inside = first
    replica.reported = replica.n


@inlined
def routed(arrival):
    """An arrival as a router is asked about it."""
    return Routed(arrival.time, arrival.priority, arrival.model, arrival.deadline)


@inlined
def hear(cluster, env, now):
    """Note in the ledgers the answers of a world that have come by time ``now``."""
    replica = cluster.replica[env]
    delay = cluster.delay_ms[1]
    while replica.told < replica.n and cluster.answer[env, replica.told].at + delay <= now:
        answer = cluster.answer[env, replica.told]
        arrival = cluster.arrival[answer.arrival]
        took = answer.at + delay - arrival.time
        inside = answer.at - arrival.time - cluster.delay_ms[0]
        end = End(took, inside, answer.executed)
        answered(cluster.ledger, arrival.door, env, routed(arrival), arrival.plain_ms, end)
        said = Report(answer.log_slowdown, answer.busy, answer.in_flight_ms, cluster.inside[env, answer.inside])
        told(cluster.ledger, arrival.door, env, answer.at + delay, said)
        if replica.load_ms > 0.0:
            _note_here(cluster, arrival.door, env, answer.inside)
        replica.told += 1


@inlined
def send_to(sim, cluster, i, env):
    """Send arrival i to world ``env``. Returns False where that has no room for more requests."""
    world = sim.world
    n = world.episode[env].n
    if n >= world.request.shape[1]:
        return False
    arrival = cluster.arrival[i]
    arrival.replica = env
    arrival.id = n
    arrival.plain_ms = send(cluster.ledger, cluster.profile, arrival.door, env, routed(arrival))
    cluster.of[env, n] = i
    r = world.request[env, n]
    r.arrival = arrival.time + cluster.delay_ms[0]
    r.deadline = arrival.deadline
    r.model = arrival.model
    r.priority = arrival.priority
    r.outcome = WAITING
    r.start = np.nan
    r.finish = np.nan
    r.batch = -1
    r.baseline = 0
    world.episode[env].n = n + 1
    cluster.replica[env].next = min(cluster.replica[env].next, r.arrival)
    return True
