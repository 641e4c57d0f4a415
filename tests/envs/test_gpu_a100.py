"""The A100 profile: reading co-runs, the two paths, and the profile that ships."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_up_ends import DEVICE_SLOWDOWN, HOST_SLOWDOWN, made_up_layers, made_up_runs

from envs.profiles import abacus
from envs.profiles.abacus import FIRST, MODELS, CoRuns
from envs.profiles.gpu_a100 import build, end_with_pairs, join, main, pair_logs, served_models, whole_models
from envs.profiles.profile import Profile
from envs.profiles.two_paths import TwoPaths, drawn, end_ms, fit_layers, fit_two_paths
from traces.errors import InputError

ROW = {
    "model_1": "bert", "start_1": 0, "end_1": 12, "batch_1": 4, "seq_len_1": 32,
    "model_2": "vgg16", "start_2": 3, "end_2": 3, "batch_2": 8, "seq_len_2": 0, "median_us": 2500.0,
}  # fmt: skip


def write(folder: Path, **changed: object) -> None:
    pd.DataFrame([ROW | changed]).to_csv(folder / "pairs.csv.gz", index=False)


def test_a_co_run_is_read_with_layers_of_all_models_counted_through(tmp_path: Path) -> None:
    write(tmp_path)
    runs = abacus.load(tmp_path, "pairs")
    assert runs.model.tolist() == [[MODELS.index("bert"), MODELS.index("vgg16")]]
    assert runs.first.tolist() == [[0, FIRST["vgg16"] + 3]]
    assert runs.items.tolist() == [[2.0, 8.0]]  # 4 sequences of half the length that counts as one item
    assert runs.running.tolist() == [[True, False]]
    assert runs.ms.tolist() == [2.5]


def test_an_unknown_model_or_a_missing_column_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        abacus.load(tmp_path, "pairs")
    write(tmp_path, model_2="gpt")
    with pytest.raises(InputError, match="model 'gpt'; expected one of bert"):
        abacus.load(tmp_path, "pairs")
    pd.DataFrame([ROW]).drop(columns="batch_2").to_csv(tmp_path / "pairs.csv.gz", index=False)
    with pytest.raises(InputError, match="batch_2"):
        abacus.load(tmp_path, "pairs")


def test_the_number_of_a_pair_does_not_depend_on_its_order() -> None:
    runs = made_up_runs(100)
    turned = CoRuns(
        **{name: np.roll(getattr(runs, name), 1, axis=-1) for name in ("model", "first", "end", "items")}, ms=runs.ms
    )
    np.testing.assert_array_equal(runs.pair, turned.pair)


def test_co_runs_end_with_the_last_and_run_on_alone_once_the_others_ended() -> None:
    alone_ms, share = np.array([[2.0, 6.0], [5.0, 0.0]]), np.ones((2, 2))
    end = end_ms(alone_ms, share, lambda _, running: 1.0 + (running.sum(axis=1, keepdims=True) > 1) * np.ones((1, 2)))
    assert end.tolist() == [8.0, 5.0]  # 4 ms side by side at half speed, then 4 ms alone


def test_end_times_do_not_depend_on_the_order_of_the_models() -> None:
    r = np.random.default_rng(0)
    alone_ms, share = r.uniform(1.0, 9.0, (50, 3)), r.uniform(0.0, 1.0, (50, 3))
    slow = lambda s, running: 1.0 + s * ((s * running).sum(axis=1, keepdims=True) - s * running)  # noqa: E731
    order = [2, 0, 1]
    np.testing.assert_allclose(end_ms(alone_ms, share, slow), end_ms(alone_ms[:, order], share[:, order], slow))


def test_layers_alone_are_recovered_from_ranges_alone() -> None:
    runs = made_up_runs(4000)
    time, _ = fit_layers(runs).sums(runs)
    true, _ = made_up_layers().sums(runs)
    on = runs.running & (true > 1.0)
    assert np.abs(time[on] / true[on] - 1.0).mean() < 0.05


def test_two_paths_recover_a_device_that_has_them() -> None:
    runs = made_up_runs(3000)
    paths = fit_two_paths(runs, fit_layers(runs), rows=2000)
    assert paths.device_slowdown == pytest.approx(DEVICE_SLOWDOWN, rel=0.2)
    fresh = made_up_runs(500, seed=1)
    assert np.abs(paths.end_ms(fresh) / fresh.ms - 1.0).mean() < 0.02


def known_paths() -> TwoPaths:
    items = np.array([4.0, 8.0, 16.0, 32.0])
    ones = np.ones((len(MODELS), len(items)))
    return TwoPaths(made_up_layers(), np.ones(len(MODELS)), ones, items, DEVICE_SLOWDOWN, HOST_SLOWDOWN, 0.3, 0.1)


def test_a_pair_that_is_slower_than_its_paths_say_is_found() -> None:
    paths, runs, true = known_paths(), made_up_runs(1500), np.zeros((7, 7))
    true[0, 1] = 0.3
    slower = CoRuns(runs.model, runs.first, runs.end, runs.items, end_with_pairs(paths, runs, true))
    logs = pair_logs(paths, slower)
    assert logs[0, 1] == pytest.approx(0.3, abs=0.1)
    assert np.abs(np.delete(logs.ravel(), 1)).max() < 0.1


def test_co_runs_of_two_join_those_of_three_as_if_a_third_did_nothing() -> None:
    two, three = made_up_runs(20), made_up_runs(10, places=3)
    both = join(two, three)
    assert both.model.shape == (30, 3) and not both.running[:20, 2].any()
    paths = known_paths()
    np.testing.assert_allclose(paths.end_ms(both), np.append(paths.end_ms(two), paths.end_ms(three)))
    assert drawn(both, 7).model.shape == (7, 3) and drawn(both, 99) is both


def test_served_models_have_bert_once_for_each_length() -> None:
    served = served_models()
    assert served["bert-16"] == ("bert", 0.25) and served["vgg16"] == ("vgg16", 1.0) and "bert" not in served
    runs = whole_models(list(served.values()), 4)
    assert runs.running.all() and runs.model.shape == (len(served), 1)


def test_shipped_profile_says_how_it_was_built() -> None:
    profile = Profile.load("gpu-a100")
    assert "not measured by us" in profile.source
    assert profile.models == tuple(served_models())
    assert np.all(np.diff(profile.solo_ms, axis=1) >= 0)
    assert ((profile.share > 0) & (profile.share <= 1)).all()
    assert profile.share[profile.index("vgg16")].min() > profile.share[profile.index("bert-8")].max()


def test_shipped_profile_is_what_the_data_gives(shared_data: Path) -> None:
    fresh, shipped = build(shared_data), Profile.load("gpu-a100")
    assert fresh.models == shipped.models
    for field in ("solo_ms", "h2d_ms", "share", "pair", "weight", "residual"):
        assert getattr(shipped, field) == pytest.approx(getattr(fresh, field), rel=1e-2, abs=1e-2), field


def test_missing_data_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path), "--out", str(tmp_path / "x.json")]) == 2
    error = capsys.readouterr().err
    assert "pairs.csv.gz: no such file" in error
    assert error.count("\n") == 1
