"""Closing the loop: a small recording is read, refitted, learned from, and the policy replaced only where it is better."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_fit import made_up_campaign
from tiny_training import tiny

from agents import from_log, train_cli
from agents.from_log import Loop, close_loop, profile_of, read_log, shadow
from agents.learned import load_policy
from agents.policy import make_policy
from agents.policy_file import read_policy
from agents.rollout import request_table, run
from envs.fit import log_slowdown
from envs.profile import Profile, synthetic_profile
from envs.refit import KNOT_MS, joined, measured_speed, of_kind, refit, with_noise
from envs.segments import cut
from envs.simulator import Simulator
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
    half = log.batches["d2h_end_ms"][: len(campaign.batches)].max()
    assert (log.batches["dispatch_ms"][len(campaign.batches) :] > half).all()


def test_refit_explains_the_log_better_than_the_shipped_interference(recorded: Path) -> None:
    _, log = read_log(recorded)
    shipped = from_log.on_machine(Profile.load("cpu2"), of_kind(log, "solo"))
    segments = cut(of_kind(log, "live"))

    def error(profile: Profile) -> float:
        work = segments.dt_ms * np.exp(-log_slowdown(segments, profile.count, profile.pair))
        total = np.bincount(segments.batch, work, len(segments.mb))
        return float(np.abs(np.log(total / profile.solo_ms.ravel()[segments.mb])).mean())

    refitted = profile_of(log)
    assert error(refitted) < 0.8 * error(shipped)
    assert not np.array_equal(refitted.prior, shipped.prior)


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
    own, slow = (measured_speed(p, live, 0.0, end) for p in (truth, replace(truth, solo_ms=truth.solo_ms / 1.3)))
    assert own.shape[1] == len(np.arange(0.0, end + KNOT_MS, KNOT_MS))
    np.testing.assert_allclose(slow - own, np.log(1.3), atol=0.02)
    assert measured_speed(truth, Measurements(campaign.machine, live.batches.head(20)), 0.0, end).size == 0


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
    speed = measured_speed(quiet, Measurements(campaign.machine, frame), 0.0, float(end[-1]))
    knots = KNOT_MS * np.arange(speed.shape[1])
    stopped = (knots >= start[121]) & (knots <= end[121])
    np.testing.assert_allclose(speed[:, ~stopped], np.log([[1.0], [1.5]]) + np.zeros((2, (~stopped).sum())), atol=0.02)
    assert stopped.sum() >= 11 and speed[:, stopped].min() > 2.0


def test_a_refitted_profile_replays_the_speed_of_the_log(
    truth: Profile, campaign: Measurements, tmp_path: Path
) -> None:
    live = of_kind(campaign, "live")
    profile = refit(truth, live)
    assert profile.speed.shape[0] == 2 and profile.drift[1] == KNOT_MS
    profile.save(tmp_path / "p.json")
    again = Profile.load(tmp_path / "p.json")
    np.testing.assert_allclose(again.truth(4).speed[0], profile.speed[[0, 1, 0, 1]], atol=1e-6)
    assert again.truth(4, noise=False).speed.size == 0


def test_episodes_begin_anywhere_in_the_speed_of_a_log(truth: Profile) -> None:
    speed = np.log(np.where(np.arange(400) < 200, 1.0, 3.0))[None]
    profile = replace(truth, speed=speed, drift=(0.0, KNOT_MS), residual=np.zeros(2))
    workload = Workload(np.zeros(1), np.zeros(1), np.zeros(1), np.full(1, 1e5), profile.models)
    sim = Simulator(profile, 64, 1)
    run(sim, make_policy("fifo"), [workload] * 64, list(range(64)))
    took = np.array([request_table(sim, e)["latency_ms"][0] for e in range(64)])
    slow = took > 1.5 * took.min()
    assert 16 < slow.sum() < 48
    np.testing.assert_array_equal(slow, sim.world.env["speed_at"] >= 199)


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


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--from-log", "nowhere"], "nowhere holds no recording"),
        (["--pid", "1"], "--pid goes with --from-log"),
        (["--from-log", "x", "--resume", "y"], "neither --resume"),
    ],
)
def test_bad_flags_are_one_clear_line(flags: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_cli.main(flags) == 2
    assert words in capsys.readouterr().err


def test_recording_without_batches_is_refused(tmp_path: Path) -> None:
    none = np.empty(0)
    Workload(none, none, none, none, ("a",)).save(tmp_path / "0000" / "arrivals.parquet")
    with pytest.raises(InputError, match="no batch"):
        read_log(tmp_path)
