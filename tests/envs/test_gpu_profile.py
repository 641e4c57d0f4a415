"""The GPU profile: what is derived where nothing was measured, and the one that ships."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from envs.profiles.gpu_v100 import SIZES, at_full_share, build, fit_pairs, main
from envs.profiles.profile import Profile


def test_a_quantity_on_the_whole_device_follows_from_its_partitions() -> None:
    share = np.array([20, 40, 50, 80])
    rows = pd.DataFrame({"share_pct": share, "latency_ms": 1.0 + 2.0 / (share / 100)})
    assert at_full_share(rows, "latency_ms") == pytest.approx(3.0)


def test_pair_fit_recovers_slowdowns_that_demands_explain() -> None:
    r = np.random.default_rng(0)
    demand = r.uniform(0, 1, (3, 2, 3))
    flat = demand.reshape(6, 3)
    own, other = (a.ravel() for a in np.meshgrid(np.arange(6), np.arange(6)))
    slow = np.exp(0.3 + 0.2 * flat[other, 1])
    pair, residual = fit_pairs(own, other, slow, demand)
    assert np.abs(residual).max() < 0.05
    assert pair[own, other] == pytest.approx(np.log(slow), abs=0.05)


def test_shipped_profile_says_how_it_was_built() -> None:
    profile = Profile.load("gpu-v100")
    assert "not measured by us" in profile.source
    assert profile.cores == 0
    assert profile.batch_sizes == SIZES
    assert np.all(np.diff(profile.solo_ms, axis=1) > 0)
    assert np.all(np.diff(profile.solo_ms / SIZES, axis=1) < 0.05 * profile.solo_ms[:, 1:] / SIZES[1:])
    assert np.all(profile.pair >= 0)


def test_shipped_profile_is_what_the_data_gives(shared_data: Path) -> None:
    fresh, shipped = build(shared_data), Profile.load("gpu-v100")
    assert fresh.models == shipped.models
    for field in ("solo_ms", "h2d_ms", "demand", "pair", "weight", "residual"):
        assert getattr(shipped, field) == pytest.approx(getattr(fresh, field), abs=1e-5), field


def test_missing_data_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path), "--out", str(tmp_path / "x.json")]) == 2
    error = capsys.readouterr().err
    assert "solo.csv: no such file" in error
    assert error.count("\n") == 1
