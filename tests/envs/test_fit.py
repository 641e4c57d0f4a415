"""Fitting a profile: what is put into made-up measurements comes out of the fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_campaign import MODELS, made_up_campaign

from envs.profiles import fit as fit_module
from envs.profiles.profile import Profile, synthetic_profile
from envs.profiles.segments import cut
from traces.errors import InputError
from traces.measurements import Measurements


@pytest.fixture(scope="module")
def truth() -> Profile:
    return synthetic_profile(MODELS, seed=3)


def test_pieces_add_up_to_execution_times(truth: Profile) -> None:
    segments = cut(made_up_campaign(truth, 30))
    total = np.bincount(segments.batch, segments.dt_ms, len(segments.variant))
    np.testing.assert_allclose(total, segments.exec_ms, rtol=1e-9)
    assert segments.n.min() == 1 and segments.n.max() == 2 and segments.n_other.max() == 1


def test_fit_explains_unseen_sets(truth: Profile) -> None:
    seen, unseen = made_up_campaign(truth, 400, 0.02, seed=1), made_up_campaign(truth, 60, 0.0, seed=2)
    profile = fit_module.fit(seen, "made-up")
    np.testing.assert_allclose(profile.solo_ms, truth.solo_ms, rtol=0.1)
    segments = cut(unseen)
    mine, them = segments.variants()
    log_slow = (profile.pair[mine[:, None], them] * segments.share).sum(axis=1)
    slow = profile.count[segments.n] * np.exp(log_slow)
    work = np.bincount(segments.batch, segments.dt_ms / slow, len(segments.variant))
    error = np.abs(work / truth.solo_ms.ravel()[segments.variant] - 1.0)
    naive = np.abs(segments.exec_ms / truth.solo_ms.ravel()[segments.variant] - 1.0)
    assert error.mean() < 0.05 < naive.mean()


def test_profile_survives_its_file(truth: Profile, tmp_path) -> None:
    truth.save(tmp_path / "p.json")
    again = Profile.load(tmp_path / "p.json")
    np.testing.assert_allclose(again.pair, truth.pair, atol=1e-6)
    assert again.models == truth.models and again.select(["model2"]).models == ("model2",)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ('{"schema": "other"}', "schema"),
        ("not json", "not JSON"),
        ('{"schema": "strait-profile/2"}', "field"),
    ],
)
def test_malformed_profile_is_one_clear_line(tmp_path, change: str, words: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(change)
    with pytest.raises(InputError, match=words):
        Profile.load(path)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("count", [1.0], "'count' must be two or more"),
        ("count", [1.0, 0.0, 0.0], "above 0"),
        ("cores", "two", "cores: 'two'; expected a number"),
        ("cores", None, "cores: None"),
        ("cores", float("nan"), "cores: nan"),
        ("cores", -1.0, "must be at least 0"),
        ("residual", [], "'residual'"),
        ("residual", [1000.0], "log of a factor beyond 10"),
        ("log_slowdown", [[1000.0]], "log of a factor beyond 10"),
        ("batch_sizes", [0, 1, 2, 4], "batch_sizes"),
        ("batch_sizes", [1, 2, 4, 8.5], "batch_sizes"),
        ("models", ["a"] * 6, "'models' names one twice"),
        ("models", [1, 2, 3, 4, 5, 6], "models"),
        ("drift_spread", -1.0, "drift_spread"),
        ("drift_knot_ms", 0.0, "drift_knot_ms"),
        ("forgetting", 1.5, "forgetting"),
        ("h2d_ms", -100.0, "'h2d_ms' has a value below 0"),
        ("solo_ms", 0.0, "above 0 ms"),
    ],
)
def test_a_field_of_a_profile_that_cannot_be_is_named(tmp_path: Path, field: str, value: Any, words: str) -> None:
    path = tmp_path / "p.json"
    synthetic_profile().save(path)
    data = json.loads(path.read_text())
    whole = field in ("h2d_ms", "solo_ms")
    data[field] = [[value] * 4] * 6 if whole else value
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match=words) as caught:
        Profile.load(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_profile_that_lacks_a_model_names_it(truth: Profile) -> None:
    with pytest.raises(InputError, match="lacks model 'absent'"):
        truth.select(["absent"])


def test_model_never_run_solo_is_named(truth: Profile) -> None:
    campaign = made_up_campaign(truth, 5)
    keep = ~((campaign.batches["model"] == "model1") & (campaign.batches["kind"] == "solo"))
    with pytest.raises(InputError, match="model1"):
        fit_module.fit(Measurements(campaign.machine, campaign.batches[keep]), "x")
