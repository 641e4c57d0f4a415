"""Changes the set of models under a scheduling state: queues, batches in flight and what was learned move over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from envs.profiles.profile import Profile
from envs.scheduling.operations import clear, invalidate_forecast
from envs.scheduling.state import SchedState, Tables, make_state
from traces.errors import InputError

# The axis of the models in those arrays of the state that have one; a test compares states of one and of two models.
MODEL_AXES = {"queue": 2, "entry": 2, "bias": 1, "n_learned": 1}


def move_state(old: SchedState, tables: Tables, came_from: Sequence[int]) -> SchedState:
    """A state for another set of models that goes on where the old one stands.

    Args:
        old: the state of one scheduler; nothing in it waits to be read from `ended`.
        tables: of the new models.
        came_from: for each new model its old index; -1 for a model that is new. An old model that is left out must have
            no requests queued and none in flight.
    """
    largest = old.member.shape[2]
    assert int(tables.size[-1]) == largest and int(old.scheduler[0].n_ended) == 0
    new = make_state(1, len(came_from), tables.size, old.stream.shape[1], old.entry.shape[3])
    clear(new, tables, 0)
    source = np.asarray(came_from)
    kept = np.flatnonzero(source >= 0)
    for field, before, after in zip(SchedState._fields, old, new):
        axis = MODEL_AXES.get(field)
        if axis is not None:
            np.moveaxis(after, axis, 0)[kept] = np.moveaxis(before, axis, 0)[source[kept]]
        elif field != "ended":  # where nothing waits, and which is as long as all queues may need
            after[...] = before
    moved_to = np.full(old.queue.shape[2], -1)
    moved_to[source[kept]] = kept
    busy = new.stream["busy"][0] == 1
    new.stream["model"][0, busy] = moved_to[new.stream["model"][0, busy]]
    assert (new.stream["model"][0, busy] >= 0).all(), "a model with a batch in flight was taken out"
    new.stream["model"][0, ~busy] = 0
    invalidate_forecast(new, 0)
    return new


def join_profiles(profile: Profile, more: Profile) -> Profile:
    """The profile with the models of another put behind its own; what lies between the two sets is not known (0).

    A model that is in both is that of the other.

    Raises:
        InputError: the batch sizes differ.
    """
    if more.batch_sizes != profile.batch_sizes:
        raise InputError(
            f"batch sizes are {list(more.batch_sizes)}; they must be {list(profile.batch_sizes)}, as served"
        )
    others = [name for name in profile.models if name not in more.models]
    if not others:
        return more
    profile = profile.select(others)
    n, m = len(profile.pair), len(more.pair)
    pair = np.zeros((n + m, n + m))
    pair[:n, :n], pair[n:, n:] = profile.pair, more.pair
    return replace(
        profile,
        models=profile.models + more.models,
        solo_ms=np.concatenate([profile.solo_ms, more.solo_ms]),
        h2d_ms=np.concatenate([profile.h2d_ms, more.h2d_ms]),
        d2h_ms=np.concatenate([profile.d2h_ms, more.d2h_ms]),
        demand=np.concatenate([profile.demand, more.demand]),
        share=np.concatenate([profile.share, more.share]),
        pair=pair,
    )
