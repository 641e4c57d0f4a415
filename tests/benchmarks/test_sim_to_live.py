"""The engine's overheads in the truth, their measurement on a live run, and the comparison of simulated and live."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from agents.evaluation import metric
from agents.evaluation.rollout import request_table, run
from agents.policies.registry import make_policy
from benchmarks import sim_to_live
from benchmarks.live import headline as live
from benchmarks.live import simulated as live_simulated
from benchmarks.live.report import draw, sim_to_live_table
from benchmarks.live.runs import LiveRun, LiveSettings, Offered, in_slots, make_cells, run_all
from benchmarks.live.simulated import drift_corrected, simulate, violation_rates
from benchmarks.sim_to_live import SimToLiveBenchmark, compare, describe, verdict
from envs.profiles.delays import crowds
from envs.profiles.profile import Profile, synthetic_profile
from envs.profiles.refit import KNOT_MS, with_measured_slowdown, with_noise
from envs.simulation.simulator import Simulator
from serving.executors.cpu import CpuExecutor
from serving.models.load import load_model
from serving.models.served import ModelSpec
from serving.observers.overhead import OverheadMeter, measure_overhead
from serving.replay.live_runs import Machine
from serving.replay.replay import make_inputs
from traces.errors import InputError
from traces.workload import Workload

NAMES = ("double", "slow")


def one_request(profile: Profile, **changes: Any) -> pd.DataFrame:
    sim = Simulator(replace(profile, **changes), n_streams=2, noise=False)
    workload = Workload(np.zeros(1), np.zeros(1), np.zeros(1), np.array([1e4]), profile.models)
    run(sim, make_policy("fifo"), [workload], [0])
    return request_table(sim)


def test_completion_delay_is_seen_by_the_scheduler_alone() -> None:
    profile = synthetic_profile(2)
    plain, late = one_request(profile), one_request(profile, completion_ms=3.0)
    assert late["latency_ms"][0] == pytest.approx(plain["latency_ms"][0] + 3.0)


def test_shared_cores_delay_handover_and_completion() -> None:
    """Three batches on two cores: the third waits on its own core, and the second sees that another core is shared."""
    profile = replace(synthetic_profile(1), dispatch_ms=0.0)
    crowded = np.array([[1.0, 50.0], [0.0, 0.0]])
    waits = []
    for mean in (np.zeros((2, 2)), crowded):
        sim = Simulator(replace(profile, shared_core_wait_ms=mean.tolist()), 64, n_streams=3, noise=False)
        sim.load([Workload(np.zeros(3), np.zeros(3), np.zeros(3), np.full(3, 1e5), profile.models)] * 64)
        sim.begin(list(range(64)))
        for _ in range(3):
            sim.step(np.zeros(64, np.int64), np.full(64, np.inf))
        waits.append(sim.world.run["h2d_start"].copy())
    extra = waits[1] - waits[0]
    assert np.abs(extra[:, :2]).max() < 1e-9  # no core was shared yet
    assert extra[:, 2].mean() == pytest.approx(50.0, rel=0.4) and extra[:, 2].std() > 10.0


def test_a_given_speed_is_what_batches_run_at() -> None:
    profile = replace(synthetic_profile(2), residual=0.02 * np.random.default_rng(0).standard_normal(64))
    n = 600
    workload = Workload(15.0 * np.arange(n), np.arange(n) % 2, np.zeros(n), np.full(n, 1e5), profile.models)
    knots = np.where(np.arange(0.0, 15.0 * n, KNOT_MS) < 7.5 * n, 0.0, 0.5)[None]
    sim = Simulator(profile, n_streams=1, truth=with_measured_slowdown(profile.truth(1), knots))
    run(sim, make_policy("fifo"), [workload], [0])
    table = request_table(sim).groupby("batch_id").agg(start=("arrival_ms", "first"), finish=("finish_ms", "first"))
    assert len(table) > 100
    first, second = (table[(table["start"] > a) & (table["start"] < b)] for a, b in ((0, 4000), (5000, 9000)))
    ratio = (second["finish"] - second["start"]).median() / (first["finish"] - first["start"]).median()
    assert ratio > 1.4


def test_each_core_runs_at_its_own_speed() -> None:
    profile = replace(synthetic_profile(1), residual=np.zeros(2), pair=np.zeros((4, 4)), cores=2.0)
    workload = Workload(np.zeros(2), np.zeros(2), np.zeros(2), np.full(2, 1e5), profile.models)
    speed = np.log([[1.0] * 100, [3.0] * 100])
    sim = Simulator(profile, n_streams=2, truth=with_measured_slowdown(profile.truth(2), speed))
    run(sim, make_policy("fifo", max_batch=1), [workload], [0])
    took = np.sort(request_table(sim)["latency_ms"])
    assert took[1] - took[0] == pytest.approx(2.0 * profile.solo_ms[0, 0], rel=0.01)


def test_crowds_distinguish_the_own_core_from_others() -> None:
    stream, start, end = np.array([[0, 0.0, 10.0], [1, 1.0, 9.0], [2, 2.0, 8.0], [3, 12.0, 13.0]]).T
    assert crowds(stream, start, end, 2).tolist() == [[0, 0], [0, 0], [2, 2], [0, 0]]
    start[1], end[1] = 3.0, 7.0  # begins and ends while core 0 has two
    assert crowds(stream, start, end, 2).tolist() == [[0, 0], [1, 1], [2, 2], [0, 0]]
    assert not crowds(stream, start, end, 0).any()


def test_late_timers_delay_deferrals() -> None:
    profile = synthetic_profile(2)
    tables = []
    for timer_ms in (0.0, 2.5):
        sim = Simulator(replace(profile, timer_ms=timer_ms), n_streams=2, noise=False)
        sim.load([Workload(np.zeros(1), np.zeros(1), np.zeros(1), np.array([1e4]), profile.models)])
        sim.begin([0])
        sim.step(np.array([sim.n_actions - 1]), np.array([5.0]))  # defer to a timer
        sim.step(np.array([0]), np.array([np.inf]))
        tables.append(request_table(sim))
    assert [table["queue_ms"][0] for table in tables] == [5.0, 7.5]


def test_a_profile_without_delays_can_be_loaded(tmp_path: Path) -> None:
    crowded = ((0.1, 0.2), (0.3, 0.4))
    profile = replace(synthetic_profile(2), completion_ms=1.0, timer_ms=0.5, shared_core_wait_ms=crowded)
    path = tmp_path / "p.json"
    profile.save(path)
    assert Profile.load(path).completion_ms == 1.0
    np.testing.assert_array_equal(Profile.load(path).truth(2).shared_core_wait_ms[0], crowded)
    data = json.loads(path.read_text())
    for name in ("completion_ms", "timer_ms", "shared_core_wait_ms"):
        del data[name]
    path.write_text(json.dumps(data))
    assert Profile.load(path).completion_ms == 0.0 == Profile.load(path).timer_ms


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    executor = CpuExecutor(2)
    for name in NAMES:
        executor.load(load_model(ModelSpec(name, f"toy_models:{name}", (4,), "float32", compiled=False)))
    made = synthetic_profile(2)
    profile = replace(made, models=NAMES, solo_ms=np.ones_like(made.solo_ms) * np.array(made.batch_sizes) ** 0.5)
    yield Machine(executor, profile, make_inputs(executor))
    executor.close()


@pytest.fixture(scope="module")
def runs(machine: Machine) -> list[LiveRun]:
    settings = LiveSettings(loads=[0.5, 0.9], repetitions=2, duration=0.5)
    cells = make_cells(machine.profile, ["poisson"], 200.0, settings)
    return list(run_all(machine, ("fifo", "strait"), cells))


def test_policies_alternate_on_the_same_requests(runs: list[LiveRun]) -> None:
    order = [(one.offered.repetition, one.offered.load, one.policy) for one in runs]
    assert order[:4] == [(0, 0.5, "fifo"), (0, 0.5, "strait"), (0, 0.9, "strait"), (0, 0.9, "fifo")]
    assert runs[0].offered is runs[1].offered and len(runs) == 8
    first, other = runs[0].offered.workload, runs[4].offered.workload
    assert not np.array_equal(first.arrival_ms, other.arrival_ms)
    assert all(len(one.table) == len(one.offered.workload) for one in runs)


def test_slots_joined_are_the_whole_run() -> None:
    settings = LiveSettings(loads=[0.5], repetitions=1, duration=0.5)
    cell = make_cells(synthetic_profile(2), ["poisson"], 200.0, settings)[0]
    slots = [one.workload for one in in_slots([cell], 0.2)]
    assert [int(slot.arrival_ms[-1] // 200) for slot in slots] == [0, 0, 0]
    joined = np.concatenate([slot.arrival_ms + 200.0 * i for i, slot in enumerate(slots)])
    np.testing.assert_allclose(joined, cell.workload.arrival_ms)
    assert len(in_slots([cell], 60.0)) == 1


def test_overheads_are_measured_from_a_live_run(machine: Machine, runs: list[LiveRun]) -> None:
    overhead = measure_overhead([one.meter for one in runs], machine.info)
    delays = overhead.delays
    for part in (
        delays.decision_ms,
        delays.handover_ms,
        delays.completion_ms,
        overhead.timer_ms,
        overhead.late_ms.max(),
    ):
        assert np.all(np.array(part) > 0.0)
    assert 0.0 < overhead.host_share <= 1.0
    overhead.log.validate()
    assert len(overhead.log.batches) == sum(one.result["batches"] for one in runs)
    delayed = overhead.delays.put_into(machine.profile, overhead.timer_ms)
    assert delayed.dispatch_ms == pytest.approx(delays.decision_ms + delays.handover_ms[0])
    np.testing.assert_array_equal(delayed.solo_ms, machine.profile.solo_ms)
    # Toy models run faster than the profile says, which the noise of the log corrects.
    assert with_noise(delayed, overhead.log).truth(2).solo.mean() != machine.profile.solo_ms.mean()


def test_a_meter_without_batches_changes_no_profile(machine: Machine) -> None:
    overhead = measure_overhead([OverheadMeter()], machine.info)
    assert overhead.delays.decision_ms == 0.0 and len(overhead.log.batches) == 0
    assert with_noise(machine.profile, overhead.log) is machine.profile


def test_violations_and_busy_streams_are_pooled_over_tables() -> None:
    table = pd.DataFrame(
        {
            "arrival_ms": [0.0, 0.0, 0.0, 5.0],
            "finish_ms": [10.0, 10.0, 20.0, 20.0],
            "model": "m",
            "priority": [0, 1, 1, 0],
            "outcome": ["met", "late", "met", "dropped"],
            "latency_ms": [10.0, 10.0, 20.0, 15.0],
            "queue_ms": [2.0, 2.0, 10.0, np.nan],
            "batch_id": [0, 0, 1, -1],
        }
    )
    got = describe([table, table], 2)
    assert got["high"] == 50.0 and got["low"] == 50.0 and got["weighted"] == 50.0
    assert got["busy"] == pytest.approx((8.0 + 10.0) / 40.0)


def test_a_late_offer_adds_to_latency(machine: Machine, runs: list[LiveRun]) -> None:
    offered = runs[0].offered
    quiet = replace(machine.profile, residual=np.zeros(2))
    plain = simulate(quiet, quiet, "fifo", offered, 2, 1)[0]
    late = simulate(quiet, quiet, "fifo", offered, 2, 1, late_ms=np.ones(1))[0]
    np.testing.assert_allclose(late["latency_ms"], plain["latency_ms"] + 1.0, atol=1e-6)
    np.testing.assert_allclose(late["arrival_ms"], plain["arrival_ms"])


def test_runs_too_short_to_show_drift_are_not_corrected(machine: Machine, runs: list[LiveRun]) -> None:
    rates = drift_corrected(runs, machine.profile, machine.info, 2, 1)
    measured = [[100 * one.result[tag] for tag in metric.VIOLATION] for one in runs]
    np.testing.assert_allclose(rates, measured, atol=1e-9)


def test_correction_removes_the_effect_of_a_slow_machine(
    machine: Machine, runs: list[LiveRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same policy twice, by chance the second time on a machine of a third of the speed."""
    profile = replace(machine.profile, residual=np.zeros(2))
    same = replace(
        runs[0].offered, workload=replace(runs[0].offered.workload, deadline_ms=np.full(len(runs[0].table), 2.0))
    )
    speeds = [np.zeros((2, 1)), np.full((2, 1), np.log(3.0))]
    tables = [simulate(profile, profile, "fifo", same, 2, 1, log_slowdown=speed)[0] for speed in speeds]
    both = [replace(runs[0], offered=same, table=table, policy="fifo") for table in tables]
    raw = [violation_rates([table]) for table in tables]
    nothing = SimpleNamespace(put_into=lambda profile: profile, late_ms=np.zeros(1))
    monkeypatch.setattr(live_simulated, "measure_overhead", lambda meters, info: nothing)
    monkeypatch.setattr(live_simulated, "log_slowdown_of", lambda one, truth, info: speeds[one is both[1]])
    rates = drift_corrected(both, profile, machine.info, 2, 4)
    assert raw[1].sum() > raw[0].sum() + 20.0
    assert np.abs(rates[1] - rates[0]).sum() < 0.3 * (raw[1] - raw[0]).sum()


def test_verdict_names_policies_in_another_order() -> None:
    cell = {"load": 1.0, "live_low": 1.0, "sim_low": 1.0, "live_p99_ms": 100.0, "sim_p99_ms": 90.0}
    rows = [
        cell | {"policy": "a", "live_high": 5.0, "sim_high": 4.0, "live_weighted": 5.0, "sim_weighted": 4.0},
        cell | {"policy": "b", "live_high": 1.0, "sim_high": 6.0, "live_weighted": 1.0, "sim_weighted": 6.0},
        cell | {"policy": "c", "live_high": 1.0, "sim_high": 1.0, "live_weighted": 1.5, "sim_weighted": 1.0},
    ]
    got = verdict(pd.DataFrame(rows))
    assert got["max_violation_difference_points"] == 5.0
    assert got["max_p99_difference_pct"] == pytest.approx(10.0)
    assert not got["same_order"] and got["swapped"] == ["a and b at 1"]  # b and c tie live


def test_table_and_picture_show_all_cells(machine: Machine, runs: list[LiveRun], tmp_path: Path) -> None:
    config = SimToLiveBenchmark(loads=[0.5, 0.9], repetitions=2, worlds=2, streams=2)
    overhead = measure_overhead([one.meter for one in runs], machine.info)
    frame, slower = compare(runs, machine.profile, overhead, machine.info, config)
    assert len(frame) == 2 * 2 * len(sim_to_live.TRUTHS)
    final = frame[frame["truth"] == sim_to_live.TRUTHS[-1]]
    record = {
        "machine": "made up",
        "config": {"repetitions": 2, "duration": 0.5, "trace": "poisson"},
        "explained": {name: verdict(frame[frame["truth"] == name]) for name in sim_to_live.TRUTHS},
        "cells": json.loads(final.to_json(orient="records")),
    }
    text = sim_to_live_table(record)
    assert set(slower) <= {"fifo", "strait"} and text.count("| strait") == 2 and "| + noise" in text
    draw(record, tmp_path / "violations.png")
    assert (tmp_path / "violations.png").stat().st_size > 1000


def made_up_run(policy: str, repetition: int, high: float) -> LiveRun:
    offered = Offered("poisson", 1.0, repetition, Workload(*[np.empty(0)] * 4, models=("m",)))
    result = {
        **dict(zip(metric.VIOLATION, (high, 0.1), strict=True)),
        metric.LATENCY_HIGH_P99_MS: None,
        metric.GOODPUT_RPS: 1.0,
        metric.DECISION_P99_US: 5.0,
    }
    return LiveRun(policy, offered, result, pd.DataFrame({"priority": [0, 1]}), OverheadMeter())


def test_headline_pairs_policies_and_marks_clear_differences() -> None:
    runs = [made_up_run(p, r, h + 0.05 * r) for r in range(3) for p, h in (("strait", 0.1), ("fifo", 0.4))]
    frame = live.frame_of(runs)
    rows = live.table_of(frame, ["strait"])
    assert rows[1]["minus_strait"]["high"] == [30.0, 30.0, 30.0]
    steady = live.frame_of(runs, np.array([[10.0, 5.0] if one.policy == "strait" else [9.0, 5.0] for one in runs]))
    assert live.claims(frame, steady) == {
        "strait - fifo, high": {
            "points": [-30.0, -30.0, -30.0],
            "clear": True,
            "corrected_for_drift": {"points": [1.0, 1.0, 1.0], "clear": False},
        }
    }
    json.dumps(rows, allow_nan=False)


def test_rates_of_a_run_count_the_requests_of_all_its_slots() -> None:
    busy, calm = made_up_run("strait", 0, 0.5), made_up_run("strait", 0, 0.0)
    busy.table = pd.DataFrame({"priority": [0, 0, 0, 1]})
    frame = live.frame_of([busy, calm])
    assert len(frame) == 1 and frame["high"].item() == pytest.approx(100 * 1.5 / 4)
    assert frame["n_high"].item() == 4 and frame["goodput"].item() == 1.0


def test_an_unknown_policy_is_reported_before_anything_runs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError):
        LiveSettings(policies=["nobody"])
    assert live.main(["--policies", "[nobody]"]) == 2 and sim_to_live.main(["--policies", "[nobody]"]) == 2
    assert live.main(["--repetitions", "0"]) == 2
    assert "nobody" in capsys.readouterr().err
