"""The evaluation: pairing, intervals, the digest, suites, the command line, the report it writes, and the leaderboard."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from agents import leaderboard
from agents.evaluate import evaluate, main, suites
from agents.evaluation import metric
from agents.evaluation.report import write_report
from agents.evaluation.rollout import finish, run
from agents.evaluation.statistics import bootstrap, difference, digest, weighted_rate
from agents.evaluation.suites import UNSEEN, Suite, workload_for
from agents.policies.registry import make_policy
from envs.profiles.profile import Profile
from envs.simulation.events import step
from envs.simulation.simulator import Simulator
from traces.workload import Workload, WorkloadConfig

TINY = Suite("tiny", ("strait", "fifo", "strait:no-transfer"), ("poisson",), (0.8, 1.2), 2, 400.0)


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return evaluate(TINY, progress=False)


def test_weighted_rate_counts_high_priority_five_times() -> None:
    violated, total = np.array([[1.0, 2.5], [0.0, 0.0]]), np.array([[2.0, 10.0], [0.0, 0.0]])
    assert weighted_rate(violated, total) == pytest.approx([(5 * 1 + 2.5) / 20, 0.0])
    assert weighted_rate(violated, total, 1.0) == pytest.approx([3.5 / 12, 0.0])


def test_bootstrap_interval_holds_the_mean_and_shrinks_with_the_spread() -> None:
    r = np.random.default_rng(0)
    low, mean, high = bootstrap(r.normal(2.0, 1.0, 50))
    assert low < mean < high
    assert bootstrap(np.full(10, 3.0)) == (3.0, 3.0, 3.0)


def test_every_policy_meets_the_same_requests(frame: pd.DataFrame) -> None:
    assert len(frame) == 3 * 2 * 2
    for _, rows in frame.groupby(["workload", "load", "seed"]):
        assert rows["n_high"].nunique() == 1
        assert rows["n_low"].nunique() == 1


def test_digest_has_what_was_asked_for_and_no_difference_from_itself(frame: pd.DataFrame) -> None:
    result = digest(frame)
    assert set(result) == set(TINY.policies)
    assert set(result["fifo"]) == {"0.8", "1.2"}
    assert set(result["fifo"]["0.8"]) == {"high", "low", "goodput", "jain", "weighted", "weighted_minus_strait"}
    assert result["strait"]["1.2"]["weighted_minus_strait"] == [0.0, 0.0, 0.0]
    expected = 100 * difference(frame[frame["load"] == 1.2], "fifo", "strait").mean()
    assert result["fifo"]["1.2"]["weighted_minus_strait"][1] == pytest.approx(expected, abs=1e-3)


def test_the_order_of_rows_does_not_change_what_is_paired(frame: pd.DataFrame) -> None:
    shuffled = frame.sample(frac=1.0, random_state=1)
    assert np.sort(difference(shuffled, "fifo", "strait")) == pytest.approx(
        np.sort(difference(frame, "fifo", "strait"))
    )


def test_one_compiled_loop_serves_all_policies_and_does_what_stepping_does() -> None:
    profile = Profile.load("cpu2")
    workload = workload_for("bursty", 300.0, 500.0, profile, WorkloadConfig(), 1)
    for name in ("strait", "triton"):
        policy = make_policy(name)
        fast, slow = (Simulator(profile, 1, 4) for _ in range(2))
        run(fast, policy, [workload], [1])
        policy.reset(1)
        slow.world.rules["drop_scale"] = policy.drop
        slow.load([workload])
        slow.begin([1])
        while not slow.done[0]:
            action, wake = policy.decide(slow.state, slow.tables)
            step(slow.arrays, 0, action, wake)
        assert np.array_equal(fast.state.count, slow.state.count)
        assert fast.world.episode[0].steps == slow.world.episode[0].steps


def test_deciding_follows_the_state_and_tables_that_it_is_given() -> None:
    profile = Profile.load("cpu2")
    policy = make_policy("fifo")
    sims = [Simulator(profile, 1, 4), Simulator(profile.select(profile.models[:2]), 1, 4)]
    for sim in sims:
        sim.begin([0])
        assert policy.decide(sim.state, sim.tables)[0] == sim.n_actions - 1


def test_finish_runs_only_the_worlds_in_its_range() -> None:
    profile = Profile.load("cpu2")
    policy = make_policy("fifo", 2)
    sim = Simulator(profile, 2, 4)
    sim.load([workload_for("poisson", 200.0, 200.0, profile, WorkloadConfig(), 1)])
    sim.begin([1, 1])
    finish(policy, sim.arrays, policy.memory, 1, 2)
    assert sim.done.tolist() == [False, True]


def test_unseen_models_are_kept_for_their_suite() -> None:
    profile = Profile.load("cpu2")
    for name, suite in suites().items():
        assert bool(set(UNSEEN) & set(suite.select(profile).models)) == (name == "unseen"), name
    assert Profile.load("gpu-v100").models == suites()["quick"].select(Profile.load("gpu-v100")).models


def test_report_has_results_pictures_and_tensorboard(frame: pd.DataFrame, tmp_path: Path) -> None:
    path = write_report(frame, TINY, {"profile": "cpu2", "suite": "tiny"}, tmp_path / "out")
    text = path.read_text()
    assert "Load 1.2" in text and "no-transfer" in text
    for name in ("violations", "latency", "fairness", "pareto", "ablation"):
        picture = path.parent / f"{name}.png"
        assert picture.read_bytes()[:4] == b"\x89PNG"
        assert picture.stat().st_size < 200_000
        assert f"({name}.png)" in text
    table = pq.read_table(path.parent / "results.parquet")
    assert table.num_rows == len(frame)
    assert json.loads(table.schema.metadata[b"strait.evaluate"])["config"]["suite"] == "tiny"
    assert list((path.parent / "tensorboard").glob("*/events*"))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(path.parent / "tensorboard" / "fifo")).Reload()
    assert [e.step for e in events.Scalars(metric.VIOLATION_HIGH)] == [80, 120]


def test_report_without_ablations_and_without_strait(frame: pd.DataFrame, tmp_path: Path) -> None:
    alone = frame[frame["policy"] == "fifo"]
    text = write_report(alone, replace(TINY, policies=("fifo",)), {}, tmp_path).read_text()
    assert "ablation" not in text


def test_command_line_prints_one_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--suite", "quick", "--policies", '["fifo","strait"]', "--loads", "[0.9]", "--seeds", "2", "--json"]
    assert main(flags) == 0
    result = json.loads(capsys.readouterr().out.strip())
    assert result["suite"] == "quick"
    assert result["loads"] == [0.9]
    assert set(result["policies"]) == {"fifo", "strait"}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--suite", "slow"], "unknown suite 'slow'"),
        (["--suite", "small", "--models_in_memory", "2"], "--models_in_memory: suite small has instances of its own"),
        (["--suite", "small", "--loads", "[1.0]"], "--loads: suite small has instances of its own"),
        (["--policies", '["magic"]'], "unknown policy 'magic'"),
        (["--workloads", '["rain"]'], "unknown workload 'rain'"),
        (["--profile", "abacus"], "no such profile"),
        (["--seeds", "x"], "seeds"),
    ],
)
def test_bad_input_is_one_clear_line(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*flags, "--json"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.fixture
def own_files(tmp_path: Path) -> dict[str, str]:
    """A workload file with models of the profile, and a trace of another's format, which holds arrivals alone."""
    rng = np.random.default_rng(0)
    times, models = np.sort(rng.random(400) * 5e3), ("resnet", "bert")
    recorded = Workload(times, rng.integers(0, 2, 400), rng.integers(0, 2, 400), rng.uniform(20, 90, 400), models)
    recorded.save(tmp_path / "own.csv.gz")
    lines = [f"{second},ChatGPT,1,1,2,API log\n" for second in np.sort(rng.integers(0, 60, 300))]
    (tmp_path / "burst.csv").write_text(
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n" + "".join(lines)
    )
    return {name: str(tmp_path / name) for name in ("own.csv.gz", "burst.csv")}


@pytest.mark.parametrize("name", ["own.csv.gz", "burst.csv"])
def test_a_trace_file_of_ones_own_is_evaluated(
    name: str, own_files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--policies", "edf", "--loads", "0.9", "--seeds", "2", "--workloads", f"[{own_files[name]}]", "--json"]
    assert main(flags) == 0
    assert 0 <= json.loads(capsys.readouterr().out.splitlines()[-1])["policies"]["edf"]["0.9"]["high"] <= 100


@pytest.mark.parametrize("name", ["own.csv.gz", "burst.csv"])
def test_a_trace_file_has_the_rate_asked_for_and_its_own_requests(name: str, own_files: dict[str, str]) -> None:
    profile = Profile.load("cpu2")
    for rate in (20.0, 500.0):  # a part of the file, and the file more than once
        found = [workload_for(own_files[name], rate, 2_000.0, profile, WorkloadConfig(), seed) for seed in (0, 0, 1)]
        assert len(found[0]) == rate * 2 and found[0].duration_ms <= 2_000
        assert np.array_equal(found[0].arrival_ms, found[1].arrival_ms)
        assert not np.array_equal(found[0].arrival_ms, found[2].arrival_ms)
    if name == "own.csv.gz":
        whole = Workload.load(own_files[name], profile.models)
        assert set(found[0].deadline_ms) <= set(whole.deadline_ms) and set(found[0].model) == set(whole.model)
        assert not np.any(np.diff(found[0].arrival_ms) < 0)


def test_a_trace_file_that_cannot_be_used_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.csv").write_text("arrival_ms,model,priority,deadline_ms\n1,nobody,high,5\n2,nobody,high,5\n")
    (tmp_path / "b.csv").write_text("what\n1\n")
    for text, says in (
        ("a.csv", "model is 'nobody'; expected one of"),
        ("b.csv", "no known format"),
        ("c.csv", "unknown"),
    ):
        assert main(["--workloads", f"[{tmp_path / text}]", "--json"]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and says in error


# The leaderboard: order, means and intervals over seeds, and the command line.

RATES = {"strait": (0.1, 0.3), "fifo": (0.5, 0.7), "edf": (0.2, 0.4)}  # weighted, of seeds 0 and 1


def made_up_frame(*policies: str) -> pd.DataFrame:
    rows = [
        {"policy": policy, "workload": "bursty", "load": load, "seed": seed, "weighted": rate + shift}
        | {metric.VIOLATION_HIGH: rate, metric.VIOLATION_LOW: 2 * rate}
        for policy in policies
        for seed, rate in enumerate(RATES[policy])
        for load, shift in ((0.9, -0.05), (1.1, 0.05))
    ]
    return pd.DataFrame(rows)


def test_policies_are_ranked_by_weighted_violations_with_intervals_over_seeds() -> None:
    scores = leaderboard.rank(made_up_frame("fifo", "strait", "edf"))
    assert list(scores) == ["strait", "edf", "fifo"]
    # The spread over loads is no uncertainty: the interval of two seeds ends at their means.
    assert scores["edf"]["weighted"] == pytest.approx((20.0, 30.0, 40.0))
    assert scores["edf"]["high"][1] == pytest.approx(30.0) and scores["edf"]["low"][1] == pytest.approx(60.0)
    assert scores["fifo"]["minus_strait"] == pytest.approx((40.0, 40.0, 40.0))  # paired by seed
    assert scores["strait"]["minus_strait"] == pytest.approx((0.0, 0.0, 0.0))
    lines = leaderboard.markdown(scores).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| 1 | strait |") and lines[4].endswith("| +40.00 [+40.00, +40.00] |")


def test_without_strait_nothing_is_compared_with_it() -> None:
    scores = leaderboard.rank(made_up_frame("fifo", "edf"))
    assert "minus_strait" not in scores["fifo"] and "minus Strait" not in leaderboard.markdown(scores)


@pytest.mark.slow
def test_the_leaderboard_prints_a_table_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--profile=cpu2", "--policies=fifo,strait", "--loads=1.0", "--seeds=2", "--duration-ms=300", "--workers=1"]
    assert leaderboard.main(words) == 0
    printed = capsys.readouterr().out.splitlines()
    result = json.loads(printed[-1])
    assert set(result["policies"]) == {"fifo", "strait"} and result["capacity_rps"] > 0
    first = next(iter(result["policies"]))
    assert printed[2].startswith(f"| 1 | {first} |")
    for score in result["policies"].values():
        for low, mean, high in score.values():
            assert low <= mean <= high
    assert leaderboard.main(["--policies", "nobody"]) == 2
    assert "nobody" in capsys.readouterr().err


@pytest.mark.slow
def test_the_leaderboard_of_an_environment_serves_its_episodes(capsys: pytest.CaptureFixture[str]) -> None:
    name, seeds = "Strait/DualPriority-Tiny-v2", 3
    assert leaderboard.main([f"--env={name}", "--policies=fifo,strait", f"--seeds={seeds}", "--workers=1"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["env"] == name and set(result["policies"]) == {"fifo", "strait"}
    env, offered = gym.make(name), []
    for seed in range(seeds):
        env.reset(seed=seed)
        done = False
        while not done:
            *_, done, _, info = env.step(env.action_space.n - 1)  # DEFER, so that all of them are violated
        offered.append(info["outcomes"].sum(axis=1).tolist())
    frame = leaderboard.play(name, seeds, "strait")
    assert frame[["n_high", "n_low"]].to_numpy().tolist() == offered
    assert 0 < frame["weighted"].mean() < 1
    assert leaderboard.main(["--env=Strait/Nothing-v1"]) == 2
    assert "Strait/Nothing-v1" in capsys.readouterr().err
