"""The set of models changes under a scheduling state: all that is known of the models that stay moves with them."""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from envs.profiles.profile import synthetic_profile
from envs.scheduling.operations import clear
from envs.scheduling.state import SchedState, make_state
from serving.engine.model_set import MODEL_AXES, join_profiles, move_state

# Of the scheduler or of a stream.
SCALARS = {"scheduler", "count", "weight", "cov", "feature_sum", "scale", "n_calibrated", "member", "stream"}
SCRATCH = {"scratch", "ended"}


def filled(n_models: int) -> SchedState:
    """A state with another number in each place of each array."""
    tables = synthetic_profile(n_models).tables()
    state = make_state(1, n_models, tables.size, 3, 5)
    clear(state, tables, 0)
    value = 1
    for field, array in zip(SchedState._fields, state):
        for name in array.dtype.names or (None,):
            part = array if name is None else array[name]
            part[...] = (np.arange(part.size) + value).reshape(part.shape)
            value += part.size
        if field == "stream":
            array["busy"], array["model"] = [1, 0, 1], [0, 1, 2]
    state.scheduler["n_ended"] = 0
    return state


def test_the_axes_of_the_models_are_those_that_grow_with_their_number() -> None:
    assert set(SchedState._fields) == SCALARS | SCRATCH | set(MODEL_AXES), "is a new array by model, or not?"
    sizes = np.ones(1, np.int32)
    one, two = make_state(1, 1, sizes, 1, 1), make_state(1, 2, sizes, 1, 1)
    grown = {
        field: next(axis for axis in range(a.ndim) if a.shape[axis] != b.shape[axis])
        for field, a, b in zip(SchedState._fields, one, two)
        if a.shape != b.shape and field not in SCRATCH
    }
    assert grown == MODEL_AXES


def test_all_that_is_known_of_a_model_moves_with_it() -> None:
    old, came_from = filled(3), [2, -1, 0]
    new = move_state(old, synthetic_profile(3).tables(), came_from)
    for field, axis in MODEL_AXES.items():
        before, after = getattr(old, field), getattr(new, field)
        for m, source in enumerate(came_from):
            if source >= 0:
                assert np.array_equal(np.take(after, m, axis), np.take(before, source, axis)), field
        assert not np.array_equal(np.take(after, 1, axis), np.take(before, 1, axis)), f"{field} of a new model"
    for field in SCALARS - {"stream", "scheduler"}:
        assert np.array_equal(getattr(new, field), getattr(old, field)), field
    for field in old.stream.dtype.names:
        if field != "model":
            assert np.array_equal(new.stream[field], old.stream[field]), field
    assert new.stream["model"][0].tolist() == [2, 0, 0], "batches in flight follow their models"
    forecast = {"forecast_valid", "cached_model", "parallelism"}
    for field in set(old.scheduler.dtype.names) - forecast:
        assert np.array_equal(new.scheduler[field], old.scheduler[field]), field
    assert new.scheduler[0].forecast_valid == 0 and new.scheduler[0].cached_model == -1
    assert new.scheduler[0].parallelism == 0.0, "another set of models: it is worked out again"


def test_joined_profiles_have_all_fields_of_both() -> None:
    one, two = synthetic_profile(2), synthetic_profile(3)
    two = two.select(two.models)
    object.__setattr__(one, "models", ("a", "b"))
    object.__setattr__(two, "models", ("c", "d", "e"))
    joined = join_profiles(one, two)
    assert joined.models == ("a", "b", "c", "d", "e")
    for field in fields(joined):
        a, b, c = (getattr(profile, field.name) for profile in (one, two, joined))
        if isinstance(a, np.ndarray) and len(a) == 2 and len(b) == 3:
            assert np.array_equal(np.concatenate([a, b]), c), field.name
