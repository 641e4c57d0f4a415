"""The simulated truth: what the device really does with the batches that the scheduler dispatches, event by event.

One call moves one world on by one event (a device's own in envs.simulation.device); ``run_to_decision`` repeats that until the
scheduler has something to decide. What a world is made of is in envs.simulation.records.
"""

from __future__ import annotations

import numpy as np

from envs.scheduling import rng
from envs.scheduling.candidates import can_dispatch, valid
from envs.scheduling.jit import inlined, njit
from envs.scheduling.operations import clear, defer, dispatch, drop_all, drop_late, drop_unreachable, end_batch, enqueue
from envs.scheduling.predictor import advance
from envs.scheduling.state import HIGH, MET, WAITING
from envs.simulation.device import device_event, launch, progress
from envs.simulation.memory import begin_memory, end_load, hold, is_here, load_next, note_use
from envs.simulation.records import COPY_OUT, EXECUTE, IDLE, SUSPENDED

# Kinds of events; that of a batch is the index of its stream. END is the end of dispatch, NOTHING that of the episode.
ARRIVAL, TIMER, END, NOTHING, SUSPENSION, LOADED = -1, -2, -3, -4, -5, -6


@njit
def begin(sim, env, seed):
    """Start an episode of world e on the ``episode.n`` arrivals that its ``request`` holds."""
    state, tables, world, truth = sim.state, sim.tables, sim.world, sim.truth
    clear(state, tables, env)
    episode = world.episode[env]
    episode.seed = seed
    episode.number += 1
    episode.time = 0.0
    episode.h2d_free = 0.0
    episode.d2h_free = 0.0
    episode.next = 0
    episode.done = 0
    episode.reward = 0.0
    episode.ret = 0.0
    episode.steps = 0
    episode.suspend = np.inf
    episode.suspending = 0
    episode.knot = -1
    n_knots = truth.log_slowdown.shape[2]
    anywhere = n_knots > 0 and truth.device[env % truth.device.shape[0]].drift_from_anywhere > 0.0
    episode.drift_start = int(rng.uniform(rng.mix(seed, rng.DRIFT), 0) * n_knots) if anywhere else 0
    episode.end = world.rules[env].end_ms
    if episode.n > 0:
        episode.end += world.request[env, episode.n - 1].arrival
    for i in range(episode.n):
        r = world.request[env, i]
        r.outcome = WAITING
        r.start = np.nan
        r.finish = np.nan
        r.batch = -1
        r.baseline = 0
    for stream in range(world.run.shape[1]):
        world.run[env, stream].phase = IDLE
    begin_memory(world, env)


@inlined
def violation_cost(high_weight, priority):
    """What a violation costs in the reward: ``high_weight`` to 1, and 6 in sum, whatever the weight."""
    return 6.0 / (1.0 + high_weight) * (high_weight if priority == HIGH else 1.0)


@inlined
def collect(sim, env):
    """Read the requests that ended: note their outcome and add their reward.

    That is minus the cost of each violation; less those of a baseline (``baseline`` of the request), which is the outcome
    under another policy, or 0.
    """
    state, world = sim.state, sim.world
    own = state.scheduler[env]
    episode = world.episode[env]
    for i in range(own.n_ended):
        d = state.ended[env, i]
        r = world.request[env, d.id]
        r.outcome = d.outcome
        r.finish = max(own.now, r.arrival)
        violated = 0 if d.outcome == MET else 1
        episode.reward -= violation_cost(own.high_weight, d.priority) * (violated - r.baseline)
    own.n_ended = 0


@inlined
def next_event(state, world, env):
    """Time and kind of the next event."""
    episode = world.episode[env]
    t = np.inf
    kind = NOTHING
    for stream in range(world.run.shape[1]):
        r = world.run[env, stream]
        if r.phase <= SUSPENDED:
            continue
        at = episode.time + r.work * r.slow if r.phase == EXECUTE else r.until
        if at < t:
            t = at
            kind = stream
    if episode.suspend < t:
        t = episode.suspend
        kind = SUSPENSION
    if world.memory[env].loaded_at < t:
        t = world.memory[env].loaded_at
        kind = LOADED
    if episode.next < episode.n:
        at = world.request[env, episode.next].arrival
        if at < t:
            t = at
            kind = ARRIVAL
    if state.scheduler[env].n_queued > 0:
        if state.scheduler[env].wake < t:
            t = state.scheduler[env].wake
            kind = TIMER
        if episode.end < t:
            t = episode.end
            kind = END
    return max(t, episode.time), kind


@inlined
def run_event(sim, env):
    """Process the next event. Returns whether the scheduler saw it (an arrival, a completion, a timer, the end)."""
    state, tables, world, truth = sim.state, sim.tables, sim.world, sim.truth
    group = env % truth.solo.shape[0]
    episode = world.episode[env]
    # What the last event, or the drops after it, made room for.
    load_next(sim, env, max(state.scheduler[env].now, episode.time))
    t, kind = next_event(state, world, env)
    if kind == NOTHING:
        episode.done = 1
        return True
    if kind == SUSPENSION or (kind >= 0 and world.run[env, kind].phase != COPY_OUT):
        progress(world, env, t)
        device_event(sim, env, group, t, kind)
        return False
    if kind != ARRIVAL or state.scheduler[env].n_free > 0:
        advance(state, tables, env, t)
    if kind == ARRIVAL:
        i = episode.next
        r = world.request[env, i]
        episode.next += 1
        if not is_here(world, env, r.model):
            hold(sim, env, i, t)
            load_next(sim, env, t)
            return False
        state.scheduler[env].deferred = 0
        enqueue(state, tables, env, t, r.priority, r.model, i, r.deadline)
        return True
    if kind == LOADED:
        state.scheduler[env].deferred = 0
        end_load(sim, env, t)
        return True
    if kind == TIMER:
        state.scheduler[env].wake = np.inf
        state.scheduler[env].deferred = 0
        return True
    if kind == END:
        drop_all(state, env)
        return True
    progress(world, env, t)
    r = world.run[env, kind]
    r.phase = IDLE
    state.scheduler[env].deferred = 0
    note_use(world, env, r.mb // tables.size.shape[0], t)
    end_batch(state, tables, env, t, kind, r.exec_end - r.h2d_end)
    return True


@inlined
def needs_decision(sim, env):
    """Whether the scheduler has something to decide now. What its rules drop is dropped first; ``collect`` after it."""
    state, tables, world = sim.state, sim.tables, sim.world
    own = state.scheduler[env]
    rules = world.rules[env]
    while own.deferred == 0 and can_dispatch(state, env, tables):
        if rules.drop_scale > 0.0 and drop_unreachable(state, tables, env, rules.drop_scale) > 0:
            continue
        if rules.grace_ms < np.inf and drop_late(state, env, rules.grace_ms) > 0:
            continue
        return True
    return False


@inlined
def run_to_decision(sim, env):
    """Run events until the scheduler can decide something, or the episode is done."""
    episode = sim.world.episode[env]
    own = sim.state.scheduler[env]
    while episode.done == 0:
        ready = needs_decision(sim, env)
        # Before the next event, whose time would count as that of the drops.
        if own.n_ended > 0:
            collect(sim, env)
        if ready:
            return
        run_event(sim, env)
    if own.n_ended > 0:
        collect(sim, env)


@inlined
def act(sim, env, action, wake):
    """Carry out one decision of world e, without running on; arguments as of ``step``."""
    state, tables, world, truth = sim.state, sim.tables, sim.world, sim.truth
    group = env % truth.solo.shape[0]
    episode = world.episode[env]
    episode.reward = 0.0
    episode.steps += 1
    if not valid(state, tables, env, action):
        action = defer(state, tables, env, wake)
        state.scheduler[env].wake += truth.device[group].timer_ms
    if action >= 0:
        stream = dispatch(state, tables, env, action)
        launch(sim, env, stream)


@inlined
def step(sim, env, action, wake):
    """Carry out one decision of world e and run to the next.

    Args:
        sim: the worlds' arrays. env: which world.
        action: candidate index, or the number of candidates for DEFER. A candidate that is not valid defers.
        wake: absolute time (ms) to wake at when deferring; inf for no timer.
    """
    world = sim.world
    act(sim, env, action, wake)
    run_to_decision(sim, env)
    world.episode[env].ret += world.episode[env].reward
