"""Models over the memory of the simulated device: a request for one that is out waits until it is loaded.

As the server does it (serving.reload): one model is loaded at a time, in the order in which they were asked for; room is made
by putting out the one that answered longest ago, of those that no request is inside for. A request whose deadline is out of
reach by the time that loading takes is refused when it comes. Until its model is there, a request is not the scheduler's.
"""

from __future__ import annotations

import numpy as np

from envs.scheduling.forecast import solo_total
from envs.scheduling.jit import inlined
from envs.scheduling.operations import enqueue, refuse


@inlined
def begin_memory(world, env):
    """At the start as many models are in memory as fit."""
    memory = world.memory[env]
    memory.loading = -1
    memory.loaded_at = np.inf
    n_models = world.residency.shape[1]
    for model in range(n_models):
        own = world.residency[env, model]
        own.here = 1 if memory.room == 0 or (model - memory.first + n_models) % n_models < memory.room else 0
        own.used = 0.0
        own.held = 0
        own.held_from = 0


@inlined
def is_here(world, env, model):
    """Whether a model is in memory."""
    return world.memory[env].room == 0 or world.residency[env, model].here == 1


@inlined
def note_use(world, env, model, t):
    """A batch of a model has ended."""
    world.residency[env, model].used = t


@inlined
def _too_late(sim, env, i):
    """Whether loading its model takes longer than the deadline of request i allows; what is loaded meanwhile is not counted."""
    r = sim.world.request[env, i]
    group = env % sim.tables.solo.shape[0]
    takes_ms = sim.world.memory[env].load_ms + solo_total(sim.tables, group, r.model, 0)
    return r.arrival + takes_ms > r.deadline


@inlined
def hold(sim, env, i, t):
    """Request i asks for a model that is out of memory: it waits, or is refused."""
    r = sim.world.request[env, i]
    own = sim.world.residency[env, r.model]
    if own.held == sim.state.entry.shape[3] or _too_late(sim, env, i):
        refuse(sim.state, env, t, r.priority, r.model, i)
        return
    if own.held == 0:
        own.held_from = i
    own.held += 1


@inlined
def load_next(sim, env, t):
    """Begin to load the model that was asked for first, if none is being loaded and there is room."""
    state, world = sim.state, sim.world
    memory = world.memory[env]
    if memory.room == 0 or memory.loading >= 0:
        return
    wanted = -1
    here = 0
    for model in range(world.residency.shape[1]):
        own = world.residency[env, model]
        here += own.here
        if own.held > 0 and (wanted < 0 or own.held_from < world.residency[env, wanted].held_from):
            wanted = model
    if wanted < 0:
        return
    if here >= memory.room:
        oldest = _least_used(state, world, env)
        if oldest < 0:
            return
        world.residency[env, oldest].here = 0
    memory.loading = wanted
    memory.loaded_at = t + memory.load_ms


@inlined
def _least_used(state, world, env):
    """The model in memory that answered longest ago, of those without a request inside; -1 for none."""
    n_sizes = state.bias.shape[2]
    oldest = -1
    for model in range(world.residency.shape[1]):
        own = world.residency[env, model]
        inside = state.queue[env, 0, model].length + state.queue[env, 1, model].length
        for stream in range(world.run.shape[1]):
            run = world.run[env, stream]
            inside += 1 if run.phase > 0 and run.mb // n_sizes == model else 0
        if own.here == 1 and inside == 0 and (oldest < 0 or own.used < world.residency[env, oldest].used):
            oldest = model
    return oldest


@inlined
def end_load(sim, env, t):
    """The model that was loaded is there: what waited for it is queued, or refused where its deadline has passed."""
    state, tables, world = sim.state, sim.tables, sim.world
    memory = world.memory[env]
    model = memory.loading
    memory.loading = -1
    memory.loaded_at = np.inf
    own = world.residency[env, model]
    own.here = 1
    own.used = t
    i = own.held_from
    while own.held > 0:
        r = world.request[env, i]
        # Those that were refused when they came are told by the same rule. Where too many waited, these came last.
        if r.model == model and not _too_late(sim, env, i):
            own.held -= 1
            if r.deadline <= t:
                refuse(state, env, t, r.priority, model, i)
            else:
                enqueue(state, tables, env, t, r.priority, model, i, r.deadline)
        i += 1
