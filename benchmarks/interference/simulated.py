"""The simulated A100 against the measured one, and the scheduler's quantiles while it serves there."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from agents.evaluation.rollout import prepare
from agents.evaluation.suites import workload_for
from agents.learned.names import resolve
from envs.drawing.timeline import episode
from envs.profiles import abacus
from envs.profiles.abacus import FIRST, LAYERS, LENGTH, MODELS, CoRuns
from envs.profiles.gpu_a100 import LEAST_MEASURED, LENGTHS, SIZES
from envs.profiles.profile import Profile
from envs.profiles.replay import Log
from envs.scheduling.candidates import action_of
from envs.scheduling.state import LOW
from envs.simulation.capacity import measure_capacity
from envs.simulation.simulator import Simulator
from traces.workload import Workload, WorkloadConfig

LATE_MS = 1e6  # a deadline that nothing misses
STREAMS = 4


def whole_models(runs: CoRuns) -> np.ndarray:
    """(N,) co-runs in which every model runs, from its first layer to its last."""
    first, layers = (np.array([of[model] for model in MODELS])[runs.model] for of in (FIRST, LAYERS))
    return ((runs.first == first) & (runs.end == first + layers)).all(axis=1)


def whole_co_runs(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Simulated and measured ends (N,) in ms of whole models side by side, for pairs and for triples.

    Args:
        folder: of the data set.
    """
    profile, out = Profile.load("gpu-a100"), {}
    for name, file in (("pair", "pairs"), ("triple", "triples")):
        runs = abacus.load(folder, file)
        runs = runs.take(whole_models(runs))
        out[name] = simulated_end_ms(profile, runs), runs.ms
    return out


def variants(profile: Profile, runs: CoRuns) -> tuple[np.ndarray, np.ndarray]:
    """Model and size index (N, K) in the profile of whole models; of bert, any length and batch size of as many items."""
    known: dict[tuple[str, float], tuple[int, int]] = {}
    for b, size in enumerate(SIZES):
        if size >= LEAST_MEASURED:
            known |= {(name, float(size)): (profile.index(name), b) for name in MODELS if name != "bert"}
            known |= {("bert", size * n / LENGTH): (profile.index(f"bert-{n}"), b) for n in LENGTHS}
    found = [known[MODELS[m], items] for m, items in zip(runs.model.ravel(), runs.items.ravel(), strict=True)]
    model, size = np.array(found).T.reshape(2, *runs.model.shape)
    return model, size


def simulated_end_ms(profile: Profile, runs: CoRuns) -> np.ndarray:
    """Time (N,) until all have ended, of whole models that are dispatched together, without noise."""
    model, size = variants(profile, runs)
    n, k = model.shape
    items = np.array(profile.batch_sizes)[size]
    sim = Simulator(profile, n, k, int(items.sum(axis=1).max()), noise=False)
    sim.load([_at_once(profile, m, i) for m, i in zip(model, items, strict=True)])
    sim.begin(np.zeros(n, np.uint64))
    candidates = zip(model.ravel(), size.ravel(), strict=True)
    action = np.array([action_of(sim.tables, len(profile.models), LOW, m, b) for m, b in candidates]).reshape(n, k)
    row, place, defer = np.arange(n), np.zeros(n, np.int64), sim.n_actions - 1
    while not sim.done.all():
        at = np.minimum(place, k - 1)
        # Requests that arrive together still arrive one by one: a batch waits for its last.
        ready = (place < k) & (sim.state.queue["length"][row, LOW, model[row, at]] >= items[row, at])
        sim.step(np.where(ready, action[row, at], defer), np.full(n, np.inf))
        place += ready
    finish = sim.world.request["finish"]
    return np.array([row[:count].max() for row, count in zip(finish, sim.world.episode["n"], strict=True)])


def _at_once(profile: Profile, model: np.ndarray, items: np.ndarray) -> Workload:
    """As many requests of each model as its batch has items, all at the beginning."""
    each = np.repeat(model, items)
    n = len(each)
    return Workload(np.zeros(n), each, np.full(n, LOW), np.full(n, LATE_MS), profile.models, "at once")


def served_log(profile: Profile, load: float, duration_ms: float, seed: int = 0) -> Log:
    """Batches of a simulated run under Strait, bursty arrivals, as a log to replay."""
    policy, change = resolve("strait", profile=profile.name)
    rate_rps = load * measure_capacity(profile, STREAMS)
    workload = workload_for("bursty", rate_rps, duration_ms, profile, WorkloadConfig(), seed)
    sim = Simulator(profile, 1, STREAMS, max(len(workload), 1), tables=change(profile.tables()))
    prepare(sim, policy, [workload], [seed])
    batches = sorted(episode(sim, policy.decide)[1], key=lambda batch: batch.phases[0])
    phases = np.array([batch.phases for batch in batches])
    return Log(
        row=np.arange(len(batches)),
        run=np.zeros(len(batches), np.int64),
        stream=np.array([batch.stream for batch in batches]),
        model=np.array([profile.index(batch.model) for batch in batches]),
        size=np.searchsorted(profile.batch_sizes, [batch.batch_size for batch in batches]),
        dispatch=phases[:, 0],
        begin=phases[:, 3],
        end=phases[:, 4],
        finish=phases[:, 5],
    )
