"""Our form is chosen on folds of the training data, and never on what it is judged by."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from made_up_co_runs import co_runs

from benchmarks.interference import forms
from benchmarks.interference.coruns import finish, folds
from benchmarks.interference.nested import NO_FOLD, Chosen, choose, even_folds


def test_the_candidate_with_the_least_error_on_held_out_rows_is_chosen() -> None:
    fold, asked = np.array([0, 0, 1, NO_FOLD]), []

    def log_error(name: str, held: np.ndarray) -> np.ndarray:
        asked.append((name, held.tolist()))
        return np.full(held.sum(), {"low": -0.1, "high": 0.2}[name])

    assert choose(["high", "low"], fold, log_error) == "low"
    assert asked[:2] == [("high", [True, True, False, False]), ("high", [False, False, True, False])]


def test_folds_are_even_in_groups_and_leave_out_what_has_no_fold() -> None:
    group = np.array([7, NO_FOLD, 3, 3, 9, 11, NO_FOLD, 7])
    fold = even_folds(group, 2)
    assert (fold[group == NO_FOLD] == NO_FOLD).all()
    assert fold[group != NO_FOLD].tolist() == [1, 0, 0, 0, 1, 1]


@pytest.mark.parametrize("name", forms.CANDIDATES)
def test_every_form_holds_for_batches_alone_and_beside_several(name: str) -> None:
    data = co_runs(n=60)
    several = replace(data, others=np.concatenate([data.others, np.roll(data.others, 2, axis=0)], axis=1))
    for form in forms.CANDIDATES[name]:
        x, penalty = form(several)
        assert x.shape == (len(data.batch), len(penalty))
        assert np.isfinite(x.toarray()).all() and (penalty > 0).all()


def test_held_out_times_change_neither_the_choice_nor_the_fit() -> None:
    data = co_runs()
    train = folds(data.group, 3) != 1
    changed = replace(data, exec_ms=np.where(train, data.exec_ms, 7.0 * data.exec_ms))
    one, other = Chosen(3).fit(data, train), Chosen(3).fit(changed, train)
    assert one.form == other.form
    np.testing.assert_array_equal(one.slowdown(data), other.slowdown(data))


def test_the_chosen_form_explains_slowdowns_by_demand() -> None:
    data = co_runs()
    train = folds(data.group, 3) != 1
    chosen = Chosen(3).fit(data, train)
    assert chosen.form in forms.CANDIDATES
    error = np.abs(finish(data, chosen.slowdown(data)) / data.exec_ms - 1.0)[~train]
    assert error.mean() < 0.02
