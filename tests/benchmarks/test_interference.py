"""Offline interference models recover known slowdowns, and never see the batches that they are judged by."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from made_up_co_runs import co_runs

from benchmarks.interference import models
from benchmarks.interference.coruns import errors, finish, folds, mean_over_batch, start_only
from benchmarks.interference.cross_validation import adapt, cross_validate, repeat_gaps
from benchmarks.interference.loaders import disb, find, igniter_v100
from traces.errors import InputError


def test_true_slowdowns_integrate_to_the_measured_times() -> None:
    data = co_runs()
    own, other = data.variants()
    true = 1.0 + data.demand[own, 1] * (data.demand[other[:, 0], 1] * data.there[:, 0])
    np.testing.assert_allclose(finish(data, true), data.exec_ms)
    # The set at the start is the batch alone, so what comes later is missed.
    np.testing.assert_allclose(start_only(data, true), data.batch_solo_ms)
    np.testing.assert_allclose(finish(data, np.ones(len(true))), data.batch_solo_ms)


def test_a_batch_predicted_late_goes_on_at_its_last_slowdown() -> None:
    data = co_runs()
    slow = np.tile([1.0, 4.0], len(data.variant))
    first_half = data.batch_solo_ms / 2
    np.testing.assert_allclose(finish(data, slow), first_half + 4.0 * first_half)


@pytest.mark.parametrize("name", ["constant", "gpulet-linear", "ridge", "ours"])
def test_models_beat_solo_on_unseen_sets(name: str) -> None:
    data = co_runs()
    make = models(boosting=False)
    slow = cross_validate(data, make[name], folds(data.group, 2))
    assert slow.min() > 0.0
    predicted, solo = (errors(finish(data, s), data.exec_ms)["mape"] for s in (slow, np.ones(len(slow))))
    assert predicted < 0.8 * solo
    if name == "ours":
        assert predicted < 2.0


def test_boosting_beats_solo() -> None:
    pytest.importorskip("sklearn")
    data = co_runs()
    slow = cross_validate(data, models()["boosting"], folds(data.group, 2))
    assert errors(finish(data, slow), data.exec_ms)["mape"] < errors(data.batch_solo_ms, data.exec_ms)["mape"]


def test_held_out_times_do_not_reach_the_fit() -> None:
    data = co_runs(n=120)
    fold = folds(data.group, 2)
    make = models(boosting=False)["ours"]
    changed = replace(data, exec_ms=np.where(fold == 1, 7.0 * data.exec_ms, data.exec_ms))
    held = fold[data.batch] == 1
    np.testing.assert_array_equal(cross_validate(data, make, fold)[held], cross_validate(changed, make, fold)[held])


def test_folds_keep_groups_together() -> None:
    group = np.repeat(np.arange(200), 3)
    fold = folds(group, 4)
    assert all(len(set(fold[group == g])) == 1 for g in range(200))
    assert np.bincount(fold).min() > 60


def test_adaptation_learns_a_bias_from_the_past_only() -> None:
    data = co_runs()
    data = replace(data, group=np.zeros(len(data.variant), np.int64))
    wrong = data.exec_ms - 0.2 * data.batch_solo_ms
    online = adapt(data, wrong)
    error = np.abs(online / data.exec_ms - 1.0)
    assert error[-100:].mean() < 0.2 * np.abs(wrong / data.exec_ms - 1.0)[-100:].mean()
    later = replace(data, exec_ms=np.where(np.arange(400) >= 200, 3.0 * data.exec_ms, data.exec_ms))
    np.testing.assert_array_equal(adapt(later, wrong)[:201], online[:201])


def test_gaps_of_like_batches_are_those_of_the_noise() -> None:
    data = co_runs(n=4000)
    noisy = np.log(data.batch_solo_ms) + 0.1 * np.random.default_rng(1).standard_normal(4000)
    everything = np.ones(4000, bool)
    gaps, at = repeat_gaps(data.variant, noisy, everything, data.start_ms)
    assert gaps.mean() == pytest.approx(100 * 0.1 * np.sqrt(2 / np.pi), rel=0.1)
    pairs = np.bincount(data.variant) * (np.bincount(data.variant) - 1) // 2
    assert len(gaps) == len(at) == pairs.sum()
    assert not len(repeat_gaps(np.arange(4000), noisy, everything, data.start_ms)[0])


def test_mean_over_batch_weighs_by_time() -> None:
    data = co_runs()
    second = (np.arange(len(data.batch)) % 2).astype(float)[:, None]
    expected = (data.exec_ms - data.batch_solo_ms / 2) / data.exec_ms
    np.testing.assert_allclose(mean_over_batch(data, second)[:, 0], expected)


def test_loaders_name_the_file_and_the_fault(tmp_path) -> None:
    with pytest.raises(InputError, match="no such file"):
        igniter_v100.load(tmp_path)
    (tmp_path / "util_3080.csv").write_text("model,batch\nbert,1\n")
    with pytest.raises(InputError, match="column 'sm_pct' is missing"):
        disb.utilisations(tmp_path)
    (tmp_path / "solo.csv").write_text(
        "model,batch,share_pct,latency_ms,throughput_rps,l2_pct,dram_pct\na,1,50,2.0,500,10,10\n"
    )
    (tmp_path / "pairs.csv").write_text(
        "model_1,model_2,batch_1,batch_2,share_1_pct,latency_1_ms,latency_2_ms\na,b,1,1,50,2.2,3.3\n"
    )
    with pytest.raises(InputError, match=r"pairs.csv:2: \('b', 1, 50\)"):
        igniter_v100.load(tmp_path)
    assert find("igniter_v100", tmp_path) is None


def test_a_form_chosen_on_training_pairs_beats_linear_forms_on_unseen_pairs() -> None:
    folder = find("igniter_v100")
    if folder is None:
        pytest.skip("igniter_v100 is not here")
    data = igniter_v100.load(folder)
    make = models(boosting=False)
    static, linear, ridge = (
        finish(data, cross_validate(data, make[name], data.group)) for name in ("ours", "gpulet-linear", "ridge")
    )
    ours = errors(static, data.exec_ms)["mape"]
    assert ours < errors(ridge, data.exec_ms)["mape"] < errors(linear, data.exec_ms)["mape"]
    assert errors(adapt(data, static), data.exec_ms)["mape"] <= 1.5
    assert errors(linear, data.exec_ms)["mape"] == pytest.approx(3.2, abs=0.2)


def test_disb_beats_the_linear_form_by_a_third() -> None:
    folder, glet = find("disb"), find("glet")
    if folder is None or glet is None:
        pytest.skip("disb is not here")
    data = disb.load(folder, glet)
    make = models(boosting=False)
    ours, linear = (
        errors(finish(data, cross_validate(data, make[n], data.group)), data.exec_ms)["mape"]
        for n in ("ours", "gpulet-linear")
    )
    assert ours < 2.0 / 3.0 * linear
