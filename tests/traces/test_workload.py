"""Workloads: validation, windows, rescaling, files, and how models, priorities and deadlines are laid over arrivals."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces.errors import InputError
from traces.workload import COLUMNS, Workload, WorkloadConfig, make_workload

FIELDS = COLUMNS
HEADER = ",".join(COLUMNS)
MODELS = ("alpha", "beta", "gamma, with comma")


@st.composite
def workloads(draw: st.DrawFn, min_size: int = 0) -> Workload:
    times = sorted(draw(st.lists(st.floats(0, 1e7), min_size=min_size, max_size=30)))
    size = len(times)
    return Workload(
        np.array(times),
        np.array(draw(st.lists(st.integers(0, 2), min_size=size, max_size=size)), dtype=np.int32),
        np.array(draw(st.lists(st.integers(0, 1), min_size=size, max_size=size)), dtype=np.int8),
        np.array(draw(st.lists(st.floats(1e-3, 1e6), min_size=size, max_size=size))),
        MODELS,
    )


def same(one: Workload, two: Workload) -> bool:
    return one.models == two.models and all(np.array_equal(getattr(one, f), getattr(two, f)) for f in FIELDS)


@settings(deadline=None, max_examples=40)
@given(workload=workloads(), suffix=st.sampled_from([".csv", ".csv.gz", ".parquet"]))
def test_what_is_saved_is_loaded_exactly(workload: Workload, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"w{suffix}"
        workload.save(path)
        assert same(Workload.load(path, models=MODELS), workload)
        assert [file.name for file in Path(folder).iterdir()] == [path.name]  # nothing temporary is left


@given(workload=workloads(), cuts=st.lists(st.floats(0, 1e7), min_size=1, max_size=4, unique=True))
def test_adjacent_windows_hold_every_request_once(workload: Workload, cuts: list[float]) -> None:
    edges = [0.0, *(cut for cut in sorted(cuts) if cut > 0), 2e7]
    parts = [workload.window(start, end) for start, end in zip(edges, edges[1:])]
    assert sum(map(len, parts)) == len(workload)
    assert np.array_equal(np.concatenate([part.deadline_ms for part in parts]), workload.deadline_ms)
    for part, start, end in zip(parts, edges, edges[1:]):
        assert np.all((part.arrival_ms >= 0) & (part.arrival_ms <= end - start))


@given(workload=workloads(min_size=1), rate=st.floats(1e-2, 1e5))
def test_rescaling_changes_the_rate_and_nothing_else(workload: Workload, rate: float) -> None:
    if workload.duration_ms <= 1e-6:
        return
    scaled = workload.rescaled(rate)
    assert scaled.rate_rps == pytest.approx(rate)
    assert same(dataclasses.replace(scaled, arrival_ms=workload.arrival_ms), workload)
    assert np.allclose(scaled.rescaled(workload.rate_rps).arrival_ms, workload.arrival_ms, rtol=1e-9)


def test_deadlines_follow_solo_latency_priority_and_minimum() -> None:
    solo = np.array([1.0, 10.0])
    config = WorkloadConfig(high_fraction=0.5, deadline_factor_high=3, deadline_factor_low=7, min_deadline_ms=5)
    workload = make_workload(np.arange(2000.0), ["a", "b"], solo, config, np.random.default_rng(0))
    expected = np.maximum(np.where(workload.priority == 0, 3.0, 7.0) * solo[workload.model], 5.0)
    assert np.array_equal(workload.deadline_ms, expected)
    assert set(workload.deadline_ms) == {5.0, 7.0, 30.0, 70.0}


def test_shares_of_models_and_priorities_are_as_configured() -> None:
    config = WorkloadConfig(model_share={"c": 3, "a": 1}, high_fraction=0.2)
    workload = make_workload(np.arange(40_000.0), ["a", "b", "c"], np.ones(3), config, np.random.default_rng(1))
    share = np.bincount(workload.model, minlength=3) / len(workload)
    assert share == pytest.approx([0.25, 0.0, 0.75], abs=0.01)
    assert share[1] == 0
    assert np.mean(workload.priority == 0) == pytest.approx(0.2, abs=0.01)


def test_workloads_that_differ_in_one_setting_share_the_rest() -> None:
    def make(**settings: float) -> Workload:
        config = WorkloadConfig(**settings)  # type: ignore[arg-type]
        return make_workload(np.arange(500.0), MODELS, np.ones(3), config, np.random.default_rng(7))

    few, many = make(high_fraction=0.2), make(high_fraction=0.6)
    assert np.array_equal(few.model, many.model)
    assert np.all(many.priority[few.priority == 0] == 0)  # more become high, none is exchanged


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (WorkloadConfig(model_share={"zebra": 1}), "'zebra'"),
        (WorkloadConfig(model_share={"alpha": -1}), "model_share"),
        (WorkloadConfig(high_fraction=1.5), "high_fraction: 1.5"),
        (WorkloadConfig(deadline_factor_low=0), "deadline_factor_low: 0"),
    ],
)
def test_a_wrong_setting_is_named(config: WorkloadConfig, named: str) -> None:
    with pytest.raises(InputError, match=named):
        make_workload(np.arange(3.0), MODELS, np.ones(3), config, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("x,alpha,high,3", ":4: arrival_ms is 'x'"),
        ("nan,alpha,high,3", ":4: arrival_ms is 'nan'"),
        ("-1,alpha,high,3", ":4: arrival_ms is '-1'"),
        ("1,alpha,urgent,3", ":4: priority is 'urgent'; expected 'high' or 'low'"),
        ("1,alpha,high,0", ":4: deadline_ms is '0'"),
        ("1,delta,high,3", ":4: model is 'delta'; expected one of alpha, beta"),
        ("1,,high,3", ":4: model is ''"),
        ("1,alpha,high", ":4: a last field is missing"),
        ("1,alpha,high,3,9", ":4: more fields"),
        ("1,alpha,high,3,9,9,9", ":4: more fields"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "w.csv"
    path.write_text(f"{HEADER}\n0,beta,low,5\n\n{line}\n2,beta,low,5\n")
    with pytest.raises(InputError, match=message) as caught:
        Workload.load(path, models=["alpha", "beta"])
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_rows_in_any_order_are_sorted_and_models_taken_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(f"model,{HEADER.replace(',model', '')}\nb,5,high,1\na,2,low,4\n")
    workload = Workload.load(path)
    assert workload.models == ("a", "b") and workload.name == "mine"
    assert workload.arrival_ms.tolist() == [2, 5] and workload.model.tolist() == [0, 1]
    assert workload.priority.tolist() == [1, 0] and workload.deadline_ms.tolist() == [4, 1]


@pytest.mark.parametrize("name", ["absent.csv", "absent.parquet"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"{name}: no such file"):
        Workload.load(tmp_path / name)


def test_files_of_another_type_are_refused(tmp_path: Path) -> None:
    (tmp_path / "w.parquet").write_text("no")
    (tmp_path / "w.csv.gz").write_bytes(b"\x00\xff no")
    (tmp_path / "w.csv").write_bytes(b"\x93\xff\xfe\n1")
    (tmp_path / "e.csv").write_text("")
    (tmp_path / "c.csv").write_text("arrival_ms,model\n1,a\n")
    for name in ("w.parquet", "w.csv.gz", "w.csv", "e.csv", "c.csv"):
        with pytest.raises(InputError, match=name):
            Workload.load(tmp_path / name)
    with pytest.raises(InputError, match="saved as"):
        Workload(np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(0), MODELS).save(tmp_path / "w.txt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arrival_ms": np.array([2.0, 1.0])}, "request 1: arrival_ms is 1"),
        ({"arrival_ms": np.array([-1.0, 1.0])}, "request 0: arrival_ms"),
        ({"model": np.array([0, 3])}, "request 1: model is 3; expected from 0 to 2"),
        ({"priority": np.array([0, 2])}, "request 1: priority is 2"),
        ({"deadline_ms": np.array([np.inf, 1])}, "request 0: deadline_ms is inf"),
        ({"deadline_ms": np.ones(3)}, "deadline_ms has shape"),
        ({"models": ("a", "a", "b")}, "repeat"),
    ],
)
def test_invalid_arrays_are_refused(change: dict, message: str) -> None:
    good = Workload(np.array([0.0, 1.0]), np.array([0, 2]), np.array([0, 1]), np.ones(2), MODELS)
    with pytest.raises(InputError, match=message):
        dataclasses.replace(good, **change)


def test_impossible_windows_and_rates_are_refused() -> None:
    workload = Workload(np.array([0.0, 1.0]), np.array([0, 2]), np.array([0, 1]), np.ones(2), MODELS)
    with pytest.raises(InputError, match="window"):
        workload.window(5, 5)
    with pytest.raises(InputError, match="rate_rps"):
        workload.rescaled(0)
    with pytest.raises(InputError, match="no duration"):
        workload.window(0, 0.5).rescaled(10)


def test_description_has_size_rate_and_shares() -> None:
    text = make_workload(
        np.linspace(0, 1000, 11), ["m1", "m2"], np.ones(2), WorkloadConfig(high_fraction=1), np.random.default_rng(0)
    ).describe()
    assert "11 requests in 1.000 s" in text and "high priority 100.0 %" in text and "m1" in text
