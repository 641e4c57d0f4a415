"""The scheduler's predictor replayed over measured batches, and the benchmark that reports it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from made_up_campaign import STREAMS, made_up_campaign

from benchmarks import predictor as bench
from benchmarks.interference.cross_validation import repeat_gaps, repeats_of
from benchmarks.interference.loaders.campaign import load
from benchmarks.interference.online import shifts, split, update_cost_us
from envs.profiles.profile import Profile, synthetic_profile
from envs.profiles.refit import joined
from envs.profiles.replay import MeasuredReplay, log_of
from traces.errors import InputError
from traces.measurements import Measurements


@pytest.fixture(scope="module")
def profile() -> Profile:
    return synthetic_profile(4, cores=2.0, seed=3)


@pytest.fixture(scope="module")
def campaign(profile: Profile) -> Measurements:
    return made_up_campaign(profile, runs=40, noise=0.02)


def error(profile: Profile, campaign: Measurements, factor: float = 1.0, learn: bool = True) -> np.ndarray:
    log = log_of(campaign).slower(factor)
    replayed = MeasuredReplay(profile, STREAMS, learn=learn).run(log)
    return np.abs(replayed.known_ms / replayed.exec_ms - 1.0)


def test_a_batch_alone_is_predicted_at_its_solo_time(profile: Profile, campaign: Measurements) -> None:
    log = log_of(campaign)
    alone = log.take(np.isin(log.run, campaign.batches["run"][campaign.batches["kind"] == "solo"]))
    replayed = MeasuredReplay(profile, STREAMS, learn=False).run(alone)
    np.testing.assert_allclose(replayed.known_ms, profile.solo_ms[alone.model, alone.size], rtol=1e-6)
    assert (replayed.n_corunners == 0).all()


def test_learning_lowers_errors_and_follows_a_slow_device(profile: Profile, campaign: Measurements) -> None:
    fixed, online = error(profile, campaign, learn=False), error(profile, campaign)
    assert online[len(online) // 2 :].mean() < 1.1 * fixed[len(fixed) // 2 :].mean()
    slow_fixed, slow = error(profile, campaign, 1.5, learn=False), error(profile, campaign, 1.5)
    assert slow[-200:].mean() < 0.6 * slow_fixed[-200:].mean()


def test_batches_marked_unlearned_leave_the_predictor_unchanged(profile: Profile, campaign: Measurements) -> None:
    log = log_of(campaign)
    replay = MeasuredReplay(profile, STREAMS)
    before = replay.state.weight.copy(), replay.state.bias.copy()
    replay.run(log, np.ones(len(log), bool))
    np.testing.assert_array_equal(replay.state.weight, before[0])
    np.testing.assert_array_equal(replay.state.bias, before[1])


def test_a_log_of_unknown_sizes_is_refused(campaign: Measurements) -> None:
    odd = replace(campaign, batches=campaign.batches.assign(batch_size=3))
    with pytest.raises(InputError, match="batch_size 3 is not among"):
        log_of(odd)


def test_test_sets_are_unseen(campaign: Measurements) -> None:
    data = load(campaign)
    train, test, tested = split(campaign, data.group)
    assert len(train.batches) + test.sum() == len(campaign.batches)
    assert not set(data.group[tested]) & set(data.group[~test])
    assert tested.any()


def test_co_runners_are_those_that_overlap(campaign: Measurements) -> None:
    """Time beside others, against a plain double loop over the batches of each run."""
    data, shared = load(campaign), 0.0
    for _, batches in campaign.batches.groupby("run"):
        spans = list(zip(batches["exec_start_ms"], batches["exec_end_ms"]))
        for one, (start, end) in enumerate(spans):
            overlaps = (min(end, e) - max(start, s) for other, (s, e) in enumerate(spans) if other != one)
            shared += sum(max(overlap, 0.0) for overlap in overlaps)
    assert (data.dt_ms * data.there.sum(axis=1)).sum() == pytest.approx(shared, rel=1e-6)


def test_own_core_and_other_cores_are_counted_apart(campaign: Measurements) -> None:
    data = load(campaign)
    assert (data.n + (data.share > 0).sum(axis=1) == 1 + data.there.sum(axis=1)).all()
    np.testing.assert_allclose(data.share.sum(axis=1), data.n_other)
    assert data.n_other.max() == 1 and data.n.max() == 2


def test_coverage_of_an_unknown_quantile_is_refused(profile: Profile, campaign: Measurements) -> None:
    replayed = MeasuredReplay(profile, STREAMS).run(log_of(campaign))
    assert 0.0 < replayed.coverage(0.9) <= replayed.coverage(0.95) <= 1.0
    with pytest.raises(InputError, match=r"quantile 0\.8"):
        replayed.coverage(0.8)


@pytest.mark.slow
def test_recovery_after_shifts(profile: Profile) -> None:
    campaign = made_up_campaign(profile, runs=150, noise=0.02, seed=2)
    log = log_of(campaign)
    for shift in shifts(profile, STREAMS, log, 1):
        assert shift.recovery <= 50, shift.name


@pytest.mark.slow
def test_cost_is_measured(profile: Profile) -> None:
    assert update_cost_us(profile, STREAMS, batches=200) > 0.0


@pytest.mark.slow
def test_the_benchmark_prints_its_figures_last(profile: Profile, campaign: Measurements, tmp_path, capsys) -> None:
    campaign.save(tmp_path / "campaign")
    (tmp_path / "none").mkdir()
    figure = tmp_path / "figure.png"
    arguments = ["--measurements", str(tmp_path / "campaign"), "--data", str(tmp_path / "none")]
    assert bench.main([*arguments, "--figure", str(figure)]) == 0
    out = capsys.readouterr().out
    assert "skipped igniter_v100" in out and "skipped disb" in out and "skipped repeats" in out
    assert "skipped abacus_a100" in out
    line = json.loads(out.splitlines()[-1])
    assert set(line) == {"machine", "igniter_v100", "cpu", "disb", "recovery_batches", "coverage", "update_us", "a100"}
    assert set(line["igniter_v100"].values()) == {None} and set(line["disb"].values()) == {None}
    assert set(line["cpu"]) == {"online", "static", "gpulet", "coarse", "p90", "floor"}
    assert set(line["a100"]) == {"pair", "triple", "mig", "simulated"} and set(line["a100"].values()) == {None}
    assert set(line["coverage"]) == {"90", "95", "a100"}
    assert line["coverage"]["a100"]["90"] == pytest.approx(90, abs=2)
    assert line["coverage"]["a100"]["95"] == pytest.approx(95, abs=2)
    assert line["cpu"]["static"] < line["cpu"]["gpulet"]
    assert figure.stat().st_size > 1000


def test_gaps_of_repeats_show_noise_without_errors_of_the_model(profile: Profile) -> None:
    """Each run twice: a residual that both share cancels, what differs is the floor."""
    once = made_up_campaign(profile, runs=20, noise=0.0)
    twice = joined([once, once])
    repeat = repeats_of(twice)
    n = len(once.batches)
    np.testing.assert_array_equal(repeat[:n], repeat[n:])
    shared = np.tile(np.random.default_rng(0).normal(0.0, 0.3, n), 2)
    which, start_ms = (twice.batches["kind"] != "solo").to_numpy(), twice.batches["exec_start_ms"].to_numpy()
    gaps, at = repeat_gaps(repeat, shared, which, start_ms)
    assert len(gaps) >= which.sum() // 2 and which[at].all()
    assert gaps.max() < 1e-9
    gaps, _ = repeat_gaps(repeat, shared + np.repeat([0.0, 0.1], n), which, start_ms)
    assert np.median(gaps) == pytest.approx(10.0 / np.sqrt(2.0))


def test_a_missing_campaign_is_one_clear_line(tmp_path, capsys) -> None:
    assert bench.main(["--measurements", str(tmp_path / "x"), "--data", str(tmp_path)]) == 2
    assert "no such folder" in capsys.readouterr().err
