"""Models of the ends of co-runs recover a known device, and never see what they are judged by."""

from __future__ import annotations

import numpy as np
import pytest
from made_up_ends import DEVICE_SLOWDOWN, HOST_SLOWDOWN, made_up_layers, made_up_runs

from benchmarks.interference.a100 import Effort, Judged, held_out, judge
from benchmarks.interference.end_fit import SlowdownForm, fit_ends
from benchmarks.interference.end_forms import BASELINES, CANDIDATES
from benchmarks.interference.ends import Paths, demand_columns, layer_columns, rotated, sets
from benchmarks.interference.nested import NO_FOLD
from benchmarks.interference.simulated import simulated_end_ms, variants, whole_co_runs, whole_models
from envs.profiles.abacus import FIRST, LAYERS, MODELS, CoRuns
from envs.profiles.profile import Profile
from envs.profiles.two_paths import fit_layers, slower_path

EFFORT = Effort(rows=150, tree_rows=400, network_rows=100, folds=2, inner=2)


def error(predicted_ms: np.ndarray, runs: CoRuns) -> float:
    return float(np.abs(predicted_ms / runs.ms - 1.0).mean())


def test_a_fit_recovers_the_slowdown_and_the_ends() -> None:
    runs, seen = made_up_runs(600), []

    def noted(theta: np.ndarray, share: np.ndarray, running: np.ndarray) -> np.ndarray:
        seen.append(np.array(theta))
        return slower_path(theta, share, running)

    fitted = fit_ends(runs, fit_layers(runs), SlowdownForm(noted, (1.0, 0.02)), 600)
    fitted.end_ms(runs)
    assert seen[-1] == pytest.approx([DEVICE_SLOWDOWN, HOST_SLOWDOWN], rel=0.25)
    assert error(fitted.end_ms(made_up_runs(300, seed=1)), made_up_runs(300, seed=1)) < 0.02


@pytest.mark.parametrize("name", [*CANDIDATES, *BASELINES])
def test_no_slowdown_is_below_one_and_a_range_alone_has_none(name: str) -> None:
    form = (CANDIDATES | BASELINES)[name]
    share = np.random.default_rng(0).uniform(0.0, 1.0, (200, 3))
    slowdown = form.at(np.array(form.start))
    assert (slowdown(share, np.ones((200, 3), bool)) >= 1.0).all()
    alone = np.arange(3) == np.zeros((200, 1))
    assert slowdown(share, alone)[:, 0] == pytest.approx(1.0, abs=0.1)


def test_a_filled_device_gives_no_more_than_it_has_and_light_ranges_first() -> None:
    share = np.array([[0.2, 1.0], [0.7, 1.0], [1.0, 1.0]])
    slow = CANDIDATES["filled by weight"].at(np.array([1.0, 0.0, 2.0]))(share, np.ones((3, 2), bool))
    assert (share / slow).sum(axis=1) == pytest.approx(1.0)
    assert slow[0] == pytest.approx([1.0, 1.25])
    assert slow[1, 0] < slow[1, 1]
    assert slow[2] == pytest.approx([2.0, 2.0])


def test_columns_of_trees_do_not_depend_on_the_order_of_the_models() -> None:
    runs, layers = made_up_runs(50, places=3), made_up_layers()
    turned = rotated(runs, 1)
    np.testing.assert_allclose(demand_columns(runs, layers), demand_columns(turned, layers))
    assert demand_columns(made_up_runs(9), layers).shape[1] == demand_columns(runs, layers).shape[1]
    assert layer_columns(made_up_runs(9)).shape[1] == layer_columns(runs).shape[1]


def test_rows_of_one_model_belong_to_no_set() -> None:
    runs = made_up_runs(200)
    alone = runs.running.sum(axis=1) == 1
    assert alone.any() and (sets(runs)[alone] == NO_FOLD).all() and (sets(runs)[~alone] >= 0).all()


def test_held_out_ends_reach_neither_the_choice_nor_the_fit() -> None:
    runs, held = made_up_runs(400), made_up_runs(50, seed=2)
    layers = fit_layers(runs)
    late = CoRuns(held.model, held.first, held.end, held.items, 9.0 * held.ms)
    one, other = (judge(runs, test, layers, EFFORT, regressors=False) for test in (held, late))
    assert one.chosen == other.chosen
    for name, end in one.end_ms.items():
        np.testing.assert_array_equal(end, other.end_ms[name])


def test_paths_foretell_pairs_and_triples_that_they_never_saw() -> None:
    runs = made_up_runs(600)
    study = held_out(runs, EFFORT, regressors=False)
    found = {name: figures["mape"] for name, figures in study.errors.items()}
    assert set(found) == {"ours", "paths", *BASELINES}
    assert len(study.measured_ms) == (runs.running.sum(axis=1) > 1).sum()
    assert found["ours"] == found["paths"] < 0.5 * found["solo"]
    triples = made_up_runs(200, places=3, seed=3)
    assert error(Paths(fit_layers(runs), 300, 2).fit(runs).end_ms(triples), triples) < 0.05


def test_trees_and_network_are_compared_where_scikit_learn_is_there() -> None:
    pytest.importorskip("sklearn")
    runs = made_up_runs(500)
    study: Judged = judge(runs, made_up_runs(100, seed=4), fit_layers(runs), EFFORT, regressors=True)
    found = {name: figures["mape"] for name, figures in study.errors.items()}
    assert set(found) == {"ours", "paths", *BASELINES, "boosting", "network"}
    assert found["ours"] < found["solo"] and found["boosting"] < found["solo"]


def whole(names: list[str], items: list[float]) -> CoRuns:
    model = np.array([[MODELS.index(name) for name in names]])
    first = np.array([[FIRST[name] for name in names]])
    return CoRuns(model, first, first + [[LAYERS[name] for name in names]], np.array([items]), np.ones(1))


def test_a_simulated_model_alone_ends_after_its_copies_and_its_time_alone() -> None:
    profile = Profile.load("gpu-a100")
    runs = whole(["vgg16"], [8.0])
    m, b = profile.index("vgg16"), profile.batch_sizes.index(8)
    expected = profile.dispatch_ms + profile.h2d_ms[m, b] + profile.solo_ms[m, b] + profile.d2h_ms[m, b]
    assert simulated_end_ms(profile, runs) == pytest.approx([expected])


def test_simulated_models_side_by_side_slow_each_other() -> None:
    profile = Profile.load("gpu-a100")
    alone = [simulated_end_ms(profile, whole([name], [32.0]))[0] for name in ("vgg16", "vgg19")]
    together = simulated_end_ms(profile, whole(["vgg16", "vgg19"], [32.0, 32.0]))[0]
    assert max(alone) < 1.3 * max(alone) < together < 1.3 * sum(alone)


def test_bert_is_found_by_its_items() -> None:
    profile = Profile.load("gpu-a100")
    model, size = variants(profile, whole(["bert", "resnet50"], [0.5, 16.0]))
    assert [profile.models[m] for m in model[0]] == ["bert-8", "resnet50"]
    assert [profile.batch_sizes[b] for b in size[0]] == [4, 16]


def test_only_whole_models_are_whole() -> None:
    runs = whole(["vgg16", "bert"], [4.0, 4.0])
    assert whole_models(runs).all()
    assert not whole_models(CoRuns(runs.model, runs.first, runs.end - [[0, 1]], runs.items, runs.ms)).any()


def test_simulated_whole_models_end_as_the_a100_measured(shared_data) -> None:
    found = {
        name: float(np.abs(a / b - 1.0).mean()) for name, (a, b) in whole_co_runs(shared_data / "abacus_a100").items()
    }
    assert found["pair"] < 0.05
    assert found["triple"] < 0.08
