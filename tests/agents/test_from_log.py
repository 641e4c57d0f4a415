"""Closing the loop: a small recording is read, refitted, learned from, and the policy replaced only where it is better."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_up_campaign import made_up_campaign
from tiny_training import tiny

from agents.evaluation.rollout import request_table, run
from agents.learned.policy import load_policy
from agents.learned.policy_file import read_policy
from agents.policies.registry import make_policy
from agents.training import cli as train_cli
from agents.training import from_log
from agents.training.from_log import Loop, close_loop, profile_of, read_log, shadow, violated_weight
from envs.profiles.delays import TIMER_MS, measured_delays
from envs.profiles.fit import log_slowdown
from envs.profiles.profile import Profile, synthetic_profile
from envs.profiles.refit import KNOT_MS, joined, measured_log_slowdown, of_kind, refit, with_noise
from envs.profiles.segments import cut
from envs.simulation.simulator import Simulator
from traces.errors import InputError
from traces.measurements import PHASES, Measurements
from traces.workload import Workload, WorkloadConfig, make_workload


@pytest.fixture(scope="module")
def truth() -> Profile:
    return synthetic_profile(4, seed=3)


@pytest.fixture(scope="module")
def campaign(truth: Profile) -> Measurements:
    made = made_up_campaign(truth, 60, 0.02, seed=1)
    frame = made.batches.assign(kind=made.batches["kind"].replace({"colocation": "live"}))
    return Measurements(made.machine, frame)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, truth: Profile, campaign: Measurements) -> Path:
    """A recording of two parts; the second is of a server that was started anew."""
    folder = tmp_path_factory.mktemp("log")
    rng = np.random.default_rng(0)
    for part in range(2):
        arrivals = np.sort(rng.uniform(0.0, 5000.0, 1300))
        workload = make_workload(arrivals, truth.models, truth.solo_latency_ms, WorkloadConfig(), rng)
        workload.save(folder / f"{part:04d}" / "arrivals.parquet")
        campaign.save(folder / f"{part:04d}")
    return folder


def test_parts_follow_one_another(recorded: Path, campaign: Measurements) -> None:
    workload, log = read_log(recorded)
    assert len(workload) == 2600 and 9000 < workload.duration_ms < 10_100
    assert len(log.batches) == 2 * len(campaign.batches)
    log.validate()
    live = of_kind(log, "live").batches
    half = len(live) // 2
    assert (live["dispatch_ms"][half:] > live["d2h_end_ms"][:half].max()).all()


def test_batches_and_arrivals_are_on_one_clock(recorded: Path, campaign: Measurements) -> None:
    """The second part is of a server that was started anew: both begin again where the first part ends."""
    workload, log = read_log(recorded)
    parts = [Workload.load(recorded / f"{part:04d}" / "arrivals.parquet") for part in range(2)]
    n, live = len(campaign.batches), (campaign.batches["kind"] == "live").to_numpy()
    begin = min(parts[0].arrival_ms[0], campaign.batches["dispatch_ms"][live].min())
    shift = workload.arrival_ms[1300] - parts[1].arrival_ms[0]
    assert shift == pytest.approx(parts[0].arrival_ms[-1] - begin - min(parts[1].arrival_ms[0], begin), abs=1.0)
    for name in PHASES:
        moved = log.batches[name].to_numpy()[n:] - campaign.batches[name].to_numpy()
        np.testing.assert_allclose(moved, np.where(live, shift, 0.0))


def test_parts_of_one_server_go_on_with_its_clock(truth: Profile, campaign: Measurements, tmp_path: Path) -> None:
    """A part holds what ended in its time: a request of the second one arrived before the last one of the first."""
    whole, live = made_up_log(truth, campaign)
    waits = (whole.arrival_ms >= 1900.0) & (whole.arrival_ms < 2000.0) & (np.arange(len(whole)) % 2 == 0)
    later = waits | (whole.arrival_ms >= 2000.0)
    assert waits.any()
    for part, (requests, batches) in enumerate(((~later, live[:40]), (later, live[40:]))):
        columns = (getattr(whole, name)[requests] for name in ("arrival_ms", "model", "priority", "deadline_ms"))
        Workload(*columns, whole.models).save(tmp_path / f"{part:04d}" / "arrivals.parquet")
        Measurements(campaign.machine, batches).save(tmp_path / f"{part:04d}")
    workload, log = read_log(tmp_path)
    np.testing.assert_allclose(workload.arrival_ms, whole.arrival_ms - whole.arrival_ms[0])
    np.testing.assert_array_equal(workload.deadline_ms, whole.deadline_ms)
    np.testing.assert_allclose(log.batches["dispatch_ms"], live["dispatch_ms"] - whole.arrival_ms[0])


def made_up_log(truth: Profile, campaign: Measurements) -> tuple[Workload, pd.DataFrame]:
    """Requests of four seconds, and a batch every 50 ms."""
    rng = np.random.default_rng(0)
    arrivals = np.sort(rng.uniform(5.0, 4000.0, 400))
    workload = make_workload(arrivals, truth.models, truth.solo_latency_ms, WorkloadConfig(), rng)
    n, start = 80, 10.0 + 50.0 * np.arange(80)
    frame = campaign.batches.head(n).assign(run=0, batch_id=np.arange(n), kind="live", **dict.fromkeys(PHASES, start))
    return workload, frame.assign(exec_end_ms=start + 5.0, d2h_end_ms=start + 5.0)


def test_delays_of_the_engine_are_read_from_a_log(truth: Profile, campaign: Measurements) -> None:
    """Single batches, each decided on 0.2 ms before its dispatch and seen to end 0.4 ms after; it waits 0.3 for its worker."""
    n = 200
    start = 100.0 * np.arange(n)
    frame = campaign.batches.head(n).assign(run=0, batch_id=np.arange(n), kind="live", decided_ms=start - 0.2)
    frame = frame.assign(dispatch_ms=start, h2d_start_ms=start + 0.3, h2d_end_ms=start + 0.3, exec_start_ms=start + 0.3)
    frame = frame.assign(exec_end_ms=start + 5.0, d2h_end_ms=start + 5.0, seen_ms=start + 5.4)
    frame.loc[0, ["decided_ms", "dispatch_ms"]] = 0.0
    log = Measurements(campaign.machine, frame)
    log.validate()
    delays = measured_delays(log)
    assert delays is not None
    assert delays.decision_ms == pytest.approx(0.2, abs=0.002)
    np.testing.assert_allclose((delays.handover_ms, delays.completion_ms), [[0.3] * 3, [0.4] * 3])
    told = refit(truth, log)
    assert told.dispatch_ms == pytest.approx(0.5, abs=0.002) and told.completion_ms == pytest.approx(0.4)
    assert told.timer_ms == pytest.approx(TIMER_MS + 0.4)
    none = Measurements(campaign.machine, frame.drop(columns=["decided_ms", "seen_ms"]))
    assert measured_delays(none) is None and refit(truth, none).completion_ms == truth.completion_ms


def test_refit_explains_the_log_better_than_the_shipped_interference(recorded: Path) -> None:
    _, log = read_log(recorded)
    shipped = from_log.on_machine(Profile.load("cpu2"), of_kind(log, "solo"))
    segments = cut(of_kind(log, "live"))

    def error(profile: Profile) -> float:
        work = segments.dt_ms * np.exp(-log_slowdown(segments, profile.count, profile.pair))
        total = np.bincount(segments.batch, work, len(segments.variant))
        return float(np.abs(np.log(total / profile.solo_ms.ravel()[segments.variant])).mean())

    refitted = profile_of(log)
    assert error(refitted) < 0.8 * error(shipped)
    assert not np.array_equal(refitted.weight, shipped.weight)


def test_thin_log_leaves_the_profile(truth: Profile, campaign: Measurements) -> None:
    few = Measurements(campaign.machine, of_kind(campaign, "live").batches.head(20))
    assert refit(truth, few) is truth and with_noise(truth, few) is truth


def test_speed_of_the_log_is_in_the_middle_of_the_residuals(truth: Profile, campaign: Measurements) -> None:
    live = of_kind(campaign, "live")
    slow = replace(truth, solo_ms=truth.solo_ms / 1.3)
    level = np.median(with_noise(slow, live).residual) - np.median(with_noise(truth, live).residual)
    assert level == pytest.approx(np.log(1.3), abs=0.02)


def test_speed_over_time_is_read_from_a_log(truth: Profile, campaign: Measurements) -> None:
    live = of_kind(campaign, "live")
    end = float(live.batches["exec_end_ms"].max())
    own, slow = (measured_log_slowdown(p, live, 0.0, end) for p in (truth, replace(truth, solo_ms=truth.solo_ms / 1.3)))
    assert own.shape[1] == len(np.arange(0.0, end + KNOT_MS, KNOT_MS))
    np.testing.assert_allclose(slow - own, np.log(1.3), atol=0.02)
    assert measured_log_slowdown(truth, Measurements(campaign.machine, live.batches.head(20)), 0.0, end).size == 0


def test_speed_is_read_for_each_core_and_stops_for_all(truth: Profile, campaign: Measurements) -> None:
    """Batches one after the other, alone: those on core 1 take half as long again, and one of them 300 ms more."""
    n = 240
    stream, model = np.arange(n) % 2, np.arange(n) % len(truth.models)
    took = truth.solo_ms[model, 0] * np.where(stream == 1, 1.5, 1.0)
    took[121] += 300.0
    end = np.cumsum(took)
    start = end - took
    frame = campaign.batches.head(n).assign(
        run=0, batch_id=np.arange(n), kind="live", stream=stream, model=np.array(truth.models)[model], batch_size=1
    )
    for name in PHASES:
        frame[name] = end if name in ("exec_end_ms", "d2h_end_ms") else start
    quiet = replace(truth, residual=np.zeros(2))
    speed = measured_log_slowdown(quiet, Measurements(campaign.machine, frame), 0.0, float(end[-1]))
    knots = KNOT_MS * np.arange(speed.shape[1])
    stopped = (knots >= start[121]) & (knots <= end[121])
    np.testing.assert_allclose(speed[:, ~stopped], np.log([[1.0], [1.5]]) + np.zeros((2, (~stopped).sum())), atol=0.02)
    assert stopped.sum() >= 11 and speed[:, stopped].min() > 2.0


def test_a_refitted_profile_replays_the_speed_of_the_log(
    truth: Profile, campaign: Measurements, tmp_path: Path
) -> None:
    live = of_kind(campaign, "live")
    profile = refit(truth, live)
    assert profile.log_slowdown.shape[0] == 2 and profile.drift_knot_ms == KNOT_MS
    profile.save(tmp_path / "p.json")
    again = Profile.load(tmp_path / "p.json")
    np.testing.assert_allclose(again.truth(4).log_slowdown[0], profile.log_slowdown[[0, 1, 0, 1]], atol=1e-6)
    assert again.truth(4, noise=False).log_slowdown.size == 0


def test_episodes_begin_anywhere_in_the_speed_of_a_log(truth: Profile) -> None:
    speed = np.log(np.where(np.arange(400) < 200, 1.0, 3.0))[None]
    profile = replace(truth, log_slowdown=speed, drift_spread=0.0, drift_knot_ms=KNOT_MS, residual=np.zeros(2))
    workload = Workload(np.zeros(1), np.zeros(1), np.zeros(1), np.full(1, 1e5), profile.models)
    sim = Simulator(profile, 64, 1)
    run(sim, make_policy("fifo"), [workload] * 64, list(range(64)))
    took = np.array([request_table(sim, e)["latency_ms"][0] for e in range(64)])
    slow = took > 1.5 * took.min()
    assert 16 < slow.sum() < 48
    np.testing.assert_array_equal(slow, sim.world.episode["drift_start"] >= 199)


def test_joining_refuses_other_models(campaign: Measurements) -> None:
    fewer = replace(campaign.machine, models=campaign.machine.models[:2])
    rows = campaign.batches[campaign.batches["model"].isin([m.name for m in fewer.models])]
    with pytest.raises(InputError, match="different models"):
        joined([campaign, Measurements(fewer, rows)])


def test_shadow_tells_a_better_policy_from_a_worse_one(recorded: Path) -> None:
    workload, log = read_log(recorded)
    profile = profile_of(log)
    better = shadow(profile, workload, "fifo", "strait", log.machine.streams)
    worse = shadow(profile, workload, "strait", "fifo", log.machine.streams)
    assert better["better"] and not worse["better"]
    assert better["difference"][1] == pytest.approx(-worse["difference"][1])


def test_windows_begin_with_the_queues_that_the_one_before_left(truth: Profile) -> None:
    """Everything arrives in the first half second and much of it is late for it; no request of the rest would be late alone."""
    rng = np.random.default_rng(0)
    calm = np.arange(600.0, 4000.0, 100.0)
    arrivals = np.sort(np.concatenate([rng.uniform(0.0, 500.0, 500), calm]))
    workload = make_workload(arrivals, truth.models, truth.solo_latency_ms, WorkloadConfig(), rng)
    edges = np.array([0.0, 500.0, workload.duration_ms])
    share = violated_weight(truth, truth.truth(2), "fifo", workload, edges, 2)
    rest = workload.window(500.0, np.inf)
    alone = violated_weight(truth, truth.truth(2), "fifo", rest, np.array([0.0, rest.duration_ms]), 2)
    assert alone[0] < 0.1 and share[0] > 0.3
    assert share[1] * (5.0 * (workload.priority == 0) + (workload.priority == 1)).sum() / 2 > len(calm) / 4


def test_a_slow_machine_is_slow_in_its_shadow(recorded: Path) -> None:
    workload, log = read_log(recorded)
    profile, streams = profile_of(log), log.machine.streams
    usual, slow = (
        shadow(profile, workload, "fifo", "strait", streams, np.full((2, 1), factor))["running"]
        for factor in (0.0, np.log(2.0))
    )
    assert slow > usual + 5.0


def test_a_policy_is_no_better_than_itself(recorded: Path) -> None:
    workload, log = read_log(recorded)
    verdict = shadow(profile_of(log), workload, "strait", "strait", log.machine.streams)
    assert verdict["difference"] == [0.0, 0.0, 0.0] and not verdict["better"]


@pytest.mark.parametrize("better", [True, False])
def test_one_round_adopts_only_what_is_better(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, better: bool
) -> None:
    signals: list[tuple[int, int]] = []
    monkeypatch.setattr(from_log.os, "kill", lambda pid, number: signals.append((pid, int(number))))

    def judged(*_: Any) -> dict[str, Any]:
        return {"better": better}

    monkeypatch.setattr(from_log, "shadow", judged)
    serving = tmp_path / "serving.safetensors"
    serving.write_bytes(b"before")
    record = close_loop(tiny(tmp_path), Loop(str(recorded), "strait", str(serving), 4321))
    assert signals[0] == (4321, 0) and len(signals) == 1 + better
    assert (serving.read_bytes() != b"before") == better and record["adopted"] == (str(serving) if better else None)
    if better:
        assert load_policy(serving).metadata["reference"] == "strait"
        second = close_loop(replace(tiny(tmp_path), n_timesteps=0), Loop(str(recorded), str(serving)))
        # Fine-tuning begins with the weights that serve.
        one, other = (read_policy(p).weights["score.weight"] for p in (serving, second["policy"]))
        np.testing.assert_array_equal(one, other)
    assert json.loads(next(tmp_path.glob("ppo-1/from_log.json")).read_text())["requests"] == 2600


def test_what_could_not_be_adopted_is_told_before_anything_is_trained(recorded: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    sleeping = subprocess.Popen(["sleep", "60"])
    try:
        for changes, words in (
            ({"adopt": str(tmp_path)}, "--adopt: .* is a folder"),
            ({"adopt": str(tmp_path / "file" / "p.safetensors")}, "--adopt: .* cannot be made a folder"),
            ({"pid": 4321}, "--pid: strait is no file that could be replaced; name one with --adopt"),
            ({"adopt": str(tmp_path / "p.safetensors"), "pid": -1}, "--pid: -1"),
            ({"adopt": str(tmp_path / "p.safetensors"), "pid": sleeping.pid}, "is another process"),
        ):
            with pytest.raises(InputError, match=words):
                close_loop(tiny(tmp_path / "runs"), replace(Loop(str(recorded), "strait"), **changes))
        assert sleeping.poll() is None and not (tmp_path / "runs").exists()
    finally:
        sleeping.kill()
        sleeping.wait()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--from-log", "nowhere"], "nowhere holds no recording"),
        (["--pid", "1"], "--pid goes with --from-log"),
        (["--from-log", "x", "--resume", "y"], "does not go with --resume"),
    ],
)
def test_bad_flags_are_one_clear_line(flags: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_cli.main(flags) == 2
    assert words in capsys.readouterr().err


def test_a_recording_too_short_to_judge_by_is_refused_before_training(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workload, log = read_log(recorded)
    monkeypatch.setattr(from_log, "read_log", lambda folder: (workload.window(0.0, 2000.0), log))
    with pytest.raises(InputError, match="0.8 s to judge by is too short"):
        close_loop(tiny(tmp_path), Loop(str(recorded), "strait"))
    assert not list(tmp_path.glob("ppo-*"))


def test_recording_without_batches_is_refused(tmp_path: Path) -> None:
    none = np.empty(0)
    Workload(none, none, none, none, ("a",)).save(tmp_path / "0000" / "arrivals.parquet")
    with pytest.raises(InputError, match="no batch"):
        read_log(tmp_path)
