"""What the simulated device does: copies, execution that co-runners slow down, drift, turns on a core, suspension.

Copies go through one FIFO engine a direction. Executing batches progress at rate ``1 / (slowdown * noise)``; the slowdown
of a batch depends on how many share its core and on who executes on the others (``count`` and ``pair``, fitted offline to
measurements), and changes whenever the set of executing batches changes; the device as a whole drifts.
"""

from __future__ import annotations

import math

import numpy as np

from envs.profiles.truth import HANDOVER, OTHER_CORE, OWN_CORE, SEEN
from envs.scheduling import rng
from envs.scheduling.jit import inlined, njit
from envs.scheduling.state import HIGH
from envs.simulation.records import COPY_IN, COPY_OUT, EXECUTE, IDLE, SUSPENDED


@inlined
def _drift(world, truth, env, group, core):
    """Factor on execution times on a core now: between knots that were measured or are hashed from the episode's seed."""
    spread = truth.device[group].drift_spread
    n_knots = truth.log_slowdown.shape[2]
    if spread == 0.0 and n_knots == 0:
        return 1.0
    episode = world.episode[env]
    at = episode.time / truth.device[group].drift_knot_ms
    knot = int(at)
    if n_knots > 0:
        here = truth.log_slowdown[0, core, (episode.drift_start + knot) % n_knots]
        return math.exp(
            here + (at - knot) * (truth.log_slowdown[0, core, (episode.drift_start + knot + 1) % n_knots] - here)
        )
    if knot != episode.knot:
        seed = rng.mix(episode.seed, rng.DRIFT)
        episode.drift_a = rng.normal(seed, knot)
        episode.drift_b = rng.normal(seed, knot + 1)
        episode.knot = knot
    share = at - knot
    return math.exp(spread * ((1.0 - share) * episode.drift_a + share * episode.drift_b))


@inlined
def _set_slowdowns(world, truth, env, group):
    """Slowdown of each executing batch, from how many share its core and who executes on the others."""
    n_streams = world.run.shape[1]
    n = 0
    for stream in range(n_streams):
        r = world.run[env, stream]
        if r.phase != EXECUTE:
            continue
        n += 1
        r.sharing = 0
        for j in range(n_streams):
            if world.run[env, j].phase == EXECUTE and world.run[env, j].core == r.core:
                r.sharing += 1
    for stream in range(n_streams):
        r = world.run[env, stream]
        if r.phase != EXECUTE:
            continue
        log_slow = 0.0
        beside = 0.0
        n_beside = 0
        if n > r.sharing:
            for j in range(n_streams):
                other = world.run[env, j]
                if other.phase == EXECUTE and other.core != r.core:
                    log_slow += truth.pair[group, r.mb, other.mb] / other.sharing
                    beside += truth.share[group, other.mb] / other.sharing
                    n_beside += 1
        # A batch is as slow as the slower of what launches its work and what executes it.
        host = 1.0 + truth.device[group].host_slowdown * n_beside
        device = truth.share[group, r.mb] * (1.0 + truth.device[group].device_slowdown * beside)
        slow = max(math.exp(log_slow) * max(host, device), 1.0) * truth.count[group, r.sharing]
        r.slow = slow * r.noise * _drift(world, truth, env, group, r.core)


@njit
def _suspend(world, env, t):
    """Suspend or resume low priority after the set of executing batches changed at time t; for worlds that preempt."""
    episode = world.episode[env]
    high = False
    for stream in range(world.run.shape[1]):
        if world.run[env, stream].phase == EXECUTE and world.run[env, stream].priority == HIGH:
            high = True
    if not high:
        episode.suspend = np.inf
        episode.suspending = 0
    elif episode.suspending == 0:
        episode.suspend = min(episode.suspend, t + world.preemption[env].latency_ms)
        if episode.suspend <= t:
            episode.suspend = np.inf
            episode.suspending = 1
    for stream in range(world.run.shape[1]):
        r = world.run[env, stream]
        if episode.suspending == 1 and r.phase == EXECUTE and r.priority != HIGH:
            r.phase = SUSPENDED
        elif episode.suspending == 0 and r.phase == SUSPENDED:
            r.phase = EXECUTE
            r.work += world.preemption[env].resume_ms


@inlined
def progress(world, env, t):
    """Account the execution done until time t."""
    episode = world.episode[env]
    dt = t - episode.time
    episode.time = t
    if dt <= 0.0:
        return
    for stream in range(world.run.shape[1]):
        r = world.run[env, stream]
        if r.phase == EXECUTE:
            r.work = max(r.work - dt / r.slow, 0.0)


@njit
def _shared_core_wait(sim, env, stream, event):
    """What a batch on stream k waits at an event (HANDOVER, SEEN) because batches share cores.

    Threads on one core take turns, and one that waits for its turn may hold what threads on other cores want.
    """
    state, world, truth = sim.state, sim.world, sim.truth
    group = env % truth.solo.shape[0]
    mean = 0.0
    for i in range(world.run.shape[1]):
        if i == stream or world.run[env, i].phase == IDLE:
            continue
        if world.run[env, i].core == world.run[env, stream].core:
            mean = truth.shared_core_wait_ms[group, event, OWN_CORE]
            break
        for j in range(i):
            if j != stream and world.run[env, j].phase != IDLE and world.run[env, j].core == world.run[env, i].core:
                mean = truth.shared_core_wait_ms[group, event, OTHER_CORE]
    if mean == 0.0:
        return 0.0
    return rng.exponential(
        rng.mix(world.episode[env].seed, rng.SHARED_CORE_WAIT), 2 * state.member[env, stream, 0].id + event, mean
    )


@inlined
def launch(sim, env, stream):
    """The scheduler dispatched a batch on stream k: start its copy and draw its noise."""
    state, world, truth = sim.state, sim.world, sim.truth
    group = env % truth.solo.shape[0]
    s = state.stream[env, stream]
    r = world.run[env, stream]
    episode = world.episode[env]
    n_sizes = truth.solo.shape[2]
    first = state.member[env, stream, 0].id
    # The noise belongs to the batch's first request, so that compared policies meet the same noise.
    # It is drawn from a seed of its own: arrivals may be hashed from the episode's.
    seed = rng.mix(episode.seed, rng.NOISE)
    r.noise = truth.residual[group, int(rng.uniform(seed, 2 * first) * truth.residual.shape[1])]
    r.mb = s.model * n_sizes + s.size_index
    r.work = truth.solo[group, s.model, s.size_index]
    r.core = s.core
    r.h2d_start = max(
        state.scheduler[env].now + truth.device[group].dispatch_ms + _shared_core_wait(sim, env, stream, HANDOVER),
        episode.h2d_free,
    )
    r.h2d_end = r.h2d_start + truth.h2d[group, s.model, s.size_index]
    episode.h2d_free = r.h2d_end
    r.until = r.h2d_end
    r.phase = COPY_IN
    r.priority = s.priority
    if world.preemption[env].active > 0.0:
        r.work *= 1.0 + world.preemption[env].overhead
    for i in range(s.n):
        q = world.request[env, state.member[env, stream, i].id]
        q.start = state.scheduler[env].now
        q.batch = s.batch


@njit
def _take_first_turn(runs, stream, turn):
    """The batch on stream k begins: on a shared core its turn comes first, which puts it half a turn ahead on average.

    Args:
        runs: (K,) records of one world. stream: of the batch. turn: ms.
    """
    r = runs[stream]
    n = 0
    for i in range(runs.shape[0]):
        n += runs[i].phase == EXECUTE and runs[i].core == r.core
    share = min(0.5 * turn, r.work) / n
    for i in range(runs.shape[0]):
        if i != stream and runs[i].phase == EXECUTE and runs[i].core == r.core:
            runs[i].work += share
            r.work -= share


@inlined
def device_event(sim, env, group, t, kind):
    """What the scheduler does not see: a suspension, or the batch on stream ``kind`` is copied in or executed."""
    world, truth = sim.world, sim.truth
    if kind >= 0:
        r = world.run[env, kind]
        if r.phase == COPY_IN:
            r.phase = EXECUTE
            if truth.device[group].time_slice_ms > 0.0:
                _take_first_turn(world.run[env], kind, truth.device[group].time_slice_ms)
        else:
            episode = world.episode[env]
            r.exec_end = t
            r.phase = COPY_OUT
            r.until = (
                max(t, episode.d2h_free) + truth.d2h[group, r.mb // truth.solo.shape[2], r.mb % truth.solo.shape[2]]
            )
            episode.d2h_free = r.until
            r.until += truth.device[group].completion_ms + _shared_core_wait(sim, env, kind, SEEN)
    if world.preemption[env].active > 0.0:
        _suspend(world, env, t)
    _set_slowdowns(world, truth, env, group)
