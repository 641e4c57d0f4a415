"""The tuner: same budget for all, never worse than the defaults, repeatable, resumable."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from agents import tune as tune_module
from agents.evaluation.suites import SYNTHETIC, UNSEEN, workload_for
from agents.learned.names import SERVED, TUNED, resolve, tuned, tuned_path
from agents.policies.registry import kinds, make_policy
from agents.tune import FIRST_SEED, RANGES, TuneConfig, TuningObjective, inside, main, training_profile, tune
from envs.profiles.profile import Profile
from envs.simulation.simulator import Simulator
from traces.errors import InputError
from traces.files import atomic_write_text
from traces.workload import WorkloadConfig

SHORT = TuneConfig(["triton", "edf"], budget=4, loads=(1.0,), workloads=("poisson",), seeds=1, duration_ms=300.0)


def test_every_policy_has_ranges_for_parameters_that_it_has() -> None:
    assert set(RANGES) == {*kinds(), "ppo"}
    for name, ranges in RANGES.items():
        defaults = asdict(resolve(name)[0].params)
        assert set(ranges) <= set(defaults), name
        for low, high in ranges.values():
            assert low < high
        assert set(inside(name, defaults)) == set(ranges)


def test_the_more_cautious_the_learned_policy_the_more_it_decides_as_strait() -> None:
    profile = Profile.load("cpu2")
    sim = Simulator(profile, 1, 4)
    sim.load([workload_for("poisson", 400.0, 400.0, profile, WorkloadConfig(), 1)])
    sim.begin([1])
    strait, *learned = (resolve("strait", profile="cpu2")[0], *(resolve("ppo", caution=c)[0] for c in (0.5, 4.0, 1e6)))
    other = np.zeros(3, int)
    while not sim.done[0]:
        action, wake = strait.decide(sim.state, sim.tables)
        other += [policy.decide(sim.state, sim.tables)[0] != action for policy in learned]
        sim.step(np.array([action]), np.array([wake]))
    assert other[0] > other[1] > other[2] == 0


def test_training_is_apart_from_evaluation() -> None:
    profile = training_profile("cpu2")
    objective = TuningObjective(SHORT, profile, 300.0)
    assert min(objective.seeds) >= FIRST_SEED
    assert set(TuneConfig().workloads) <= set(SYNTHETIC)
    assert not set(profile.models) & set(UNSEEN)


def test_tuning_is_repeatable_never_worse_and_read_back(tmp_path: Path) -> None:
    first = tune(replace(SHORT, out=str(tmp_path / "a.json")), progress=False)
    again = tune(replace(SHORT, out=str(tmp_path / "b.json")), progress=False)
    assert first["policies"] == again["policies"]
    assert first["settings"]["budget"] == 4
    for entry in first["policies"].values():
        assert entry["reached"] <= entry["default"]
    params = tuned(tmp_path / "a.json")
    assert set(params) == {"edf", "triton"}
    for name, values in params.items():
        make_policy(name, **values)


def test_a_profile_takes_the_parameters_that_were_tuned_for_it() -> None:
    assert tuned_path("cpu2") == tuned_path("runs/mine/profile.json") == TUNED
    assert tuned_path("gpu-v100") != TUNED
    params = [resolve("clockwork", profile=name)[0].params for name in ("cpu2", "gpu-v100", SERVED)]
    assert len(set(params)) == len(params)


def test_the_objective_counts_high_priority_as_told() -> None:
    profile, edf = training_profile("cpu2"), make_policy("edf")
    low, fair, high = (
        TuningObjective(replace(SHORT, loads=(3.0,), high_weight=weight), profile, 300.0).score(edf)
        for weight in (0.0, 1.0, 1e9)
    )
    assert min(low, high) < fair < max(low, high), "a mean of both priorities' rates, by weight"


def test_a_file_with_the_same_settings_is_resumed(tmp_path: Path) -> None:
    config = replace(SHORT, policies=["edf"], out=str(tmp_path / "tuned.json"))
    tune(config, progress=False)
    marked = json.loads(Path(config.out).read_text())
    marked["policies"]["edf"]["reached"] = 0.123
    Path(config.out).write_text(json.dumps(marked))
    assert tune(config, progress=False)["policies"]["edf"]["reached"] == 0.123
    assert tune(replace(config, budget=3), progress=False)["policies"]["edf"]["reached"] != 0.123


def test_results_made_with_other_settings_are_not_lost(tmp_path: Path) -> None:
    out = tmp_path / "tuned.json"
    config = replace(SHORT, policies=["edf", "fifo"], budget=1, out=str(out))
    tune(config, progress=False)
    before = out.read_text()
    for changed in (replace(config, policies=["edf"], seed=1), replace(config, policies=["edf", "clipper"], seed=1)):
        with pytest.raises(InputError, match="holds results for fifo that were made with other settings"):
            tune(changed, progress=False)
    for text in ("{", "[]", '{"policies": {"edf": 1}}'):
        (tmp_path / "other.json").write_text(text)
        with pytest.raises(InputError, match="no file of tuned parameters"):
            tune(replace(config, out=str(tmp_path / "other.json")), progress=False)
        assert (tmp_path / "other.json").read_text() == text
    assert out.read_text() == before
    again = tune(replace(config, seed=1), progress=False)
    assert again["settings"]["seed"] == 1 and sorted(again["policies"]) == ["edf", "fifo"]


def test_one_that_is_interrupted_leaves_the_file_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "tuned.json"
    config = replace(SHORT, policies=["edf", "fifo"], budget=1, out=str(out))
    tune(config, progress=False)
    before, other = out.read_text(), replace(config, seed=1)

    def stopping(path: Path, text: str) -> None:
        atomic_write_text(path, text)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tune_module, "atomic_write_text", stopping)
        with pytest.raises(KeyboardInterrupt):
            tune(other, progress=False)
    assert out.read_text() == before
    (unfinished,) = tmp_path.glob("*.unfinished.json")
    begun = json.loads(unfinished.read_text())["policies"]
    assert len(begun) == 1
    whole = tune(other, progress=False)
    assert sorted(whole["policies"]) == ["edf", "fifo"] and begun.items() <= whole["policies"].items()
    assert json.loads(out.read_text()) == whole and not unfinished.exists()


def test_without_optuna_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main([]) == 2
    assert "pip install 'strait-rl[tune]'" in capsys.readouterr().err


def test_a_policy_without_parameters_to_tune_is_named() -> None:
    with pytest.raises(InputError, match="nothing to tune for 'clairvoyant'"):
        tune(replace(SHORT, policies=["clairvoyant"]), progress=False)


def test_a_trace_file_of_ones_own_is_tuned_on(tmp_path: Path) -> None:
    lines = [
        f"{25.0 * k},{model},{priority},40\n"
        for k, (model, priority) in enumerate([("bert", "high"), ("vit", "low")] * 50)
    ]
    (tmp_path / "own.csv").write_text("arrival_ms,model,priority,deadline_ms\n" + "".join(lines))
    config = replace(
        SHORT, policies=["edf"], workloads=(str(tmp_path / "own.csv"),), budget=2, out=str(tmp_path / "a.json")
    )
    assert "edf" in tune(config, progress=False)["policies"]
    with pytest.raises(InputError, match="unknown workload"):
        tune(replace(config, workloads=("nowhere.csv",)), progress=False)
