"""The real process: what it prints, how it ends, and what bad input looks like."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import serve as main_module
from agents.evaluation.summary import ENDED
from benchmarks.cluster import scaled
from envs.profiles.fit import fit
from envs.profiles.profile import Profile
from traces.measurements import Measurements
from traces.workload import Workload

ROOT = Path(__file__).resolve().parents[3]
MODELS = """
- {name: double, source: 'toy_models:double', input_shape: [4], compiled: false}
- {name: wide, source: 'toy_models:wide', input_shape: [4], compiled: false}
"""


@pytest.fixture
def models(tmp_path: Path) -> Path:
    path = tmp_path / "models.yaml"
    path.write_text(MODELS)
    return path


@pytest.fixture
def workload(tmp_path: Path) -> Path:
    """One second of 100 requests with deadlines that are easy to meet."""
    path = tmp_path / "recorded.parquet"
    n = np.arange(100)
    Workload(10.0 * n, n % 2, n % 2, np.full(100, 5000.0), ("double", "wide")).save(path)
    return path


def command(*flags: str) -> list[str]:
    return [sys.executable, str(ROOT / "serve.py"), "--streams", "2", "--policy", "edf", *flags]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT / "tests" / "helpers"), "OMP_NUM_THREADS": "1"}


def serve(*flags: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*flags), env=environment(), cwd=cwd, capture_output=True, text=True, timeout=500, check=False
    )


def result_of(stdout: str) -> dict:
    result = json.loads(stdout.strip().splitlines()[-1])
    assert list(result["outcomes"]) == list(ENDED)
    assert result["offered"] == sum(result["outcomes"].values())
    return result


def test_a_replay_prints_a_table_and_a_json_line_and_writes_what_was_asked(
    models: Path, workload: Path, tmp_path: Path
) -> None:
    ended = serve(
        f"--models={models}", f"--replay={workload}", f"--record={tmp_path / 'run'}", f"--logdir={tmp_path / 'tb'}",
        f"--timeline={tmp_path / 'timeline.json'}", "--log-json",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    result = result_of(ended.stdout)
    assert result["offered"] == 100 and result["outcomes"]["met"] > 90
    assert result["policy"] == "edf" and result["capacity_rps"] is None
    assert "violations" in ended.stdout
    for line in ended.stderr.splitlines():
        assert {"time", "level", "message"} <= set(json.loads(line))
    again = Workload.load(tmp_path / "run" / "0000" / "arrivals.parquet", ("double", "wide"))
    assert len(again) == 100
    assert Measurements.load(tmp_path / "run" / "0000").machine.streams == 2
    assert json.loads((tmp_path / "timeline.json").read_text())["traceEvents"]
    assert list((tmp_path / "tb").glob("events*"))


@pytest.mark.slow
def test_a_load_is_a_share_of_the_measured_capacity(models: Path) -> None:
    ended = serve(f"--models={models}", "--replay", "twin:azure_llm_2023", "--load", "0.2", "--duration", "3")
    assert ended.returncode == 0, ended.stderr
    result = result_of(ended.stdout)
    assert result["load"] == 0.2 and result["capacity_rps"] > 0
    assert 0 < result["offered"] < 3 * result["capacity_rps"]


@pytest.fixture
def replaying(models: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A server in the middle of a replay of two minutes."""
    path = tmp_path / "long.parquet"
    n = np.arange(12_000)
    Workload(10.0 * n, n % 2, n % 2, np.full(len(n), 5000.0), ("double", "wide")).save(path)
    process = subprocess.Popen(
        command(
            f"--models={models}", f"--replay={path}", "--duration=120", f"--record={tmp_path / 'run'}",
            f"--timeline={tmp_path / 'timeline.json'}",
        ),
        env=environment(), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if "offering" in line:
            break
    time.sleep(0.5)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_the_result_is_printed(
    replaying: subprocess.Popen[str], number: signal.Signals, tmp_path: Path
) -> None:
    replaying.send_signal(number)
    stdout, _ = replaying.communicate(timeout=60)
    assert replaying.returncode == 0
    result = result_of(stdout)
    assert 0 < result["offered"] < 12_000
    recorded = Workload.load(tmp_path / "run" / "0000" / "arrivals.parquet", ("double", "wide"))
    assert len(recorded) == result["offered"]


@pytest.mark.parametrize("flags", [["--policy", "auto"], ["--replay", "poisson", "--load", "0.9"]])
def test_a_signal_while_it_is_starting_ends_it_then(models: Path, flags: list[str]) -> None:
    process = subprocess.Popen(
        command(f"--models={models}", "--port=0", *flags),
        env=environment(),
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    while "ms alone" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    said = process.stderr.read()
    assert process.wait(60) == 0
    assert "stopped while it was starting" in said, said


def test_a_crash_leaves_a_timeline(replaying: subprocess.Popen[str], tmp_path: Path) -> None:
    timeline, end = tmp_path / "timeline.json", time.monotonic() + 60.0
    while not timeline.exists() and time.monotonic() < end:
        time.sleep(0.1)
    replaying.kill()
    replaying.wait()
    assert any(event["ph"] == "X" for event in json.loads(timeline.read_text())["traceEvents"])


def test_hup_before_there_is_a_policy_ends_no_server(models: Path) -> None:
    process = subprocess.Popen(
        command(f"--models={models}", "--replay=poisson", "--duration=0.2", "--load=0.1"), env=environment(), cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    catches = 1 << (signal.SIGHUP - 1)
    status, maps = (Path(f"/proc/{process.pid}/{name}") for name in ("status", "maps"))
    end = time.monotonic() + 60.0
    while not int(status.read_text().partition("SigCgt:")[2].split()[0], 16) & catches:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    assert "libtorch" not in maps.read_text() and "llvmlite" not in maps.read_text(), "before what takes seconds"
    for _ in range(15):
        process.send_signal(signal.SIGHUP)
        time.sleep(0.1)
    _, said = process.communicate()
    assert process.returncode == 0, said


def test_a_recording_with_a_profile_that_is_given_can_be_refitted(tmp_path: Path) -> None:
    profile = tmp_path / "profile.json"
    scaled(Profile.load("gpu-v100").select(["ssd", "alexnet"]), 0.2).save(profile)
    flags = [f"--device=sim:{profile}", f"--profile={profile}", "--replay=poisson", "--load=0.5", "--duration=3"]
    ended = serve(*flags, f"--record={tmp_path / 'run'}")
    assert ended.returncode == 0, ended.stderr
    campaign = Measurements.load(tmp_path / "run" / "0000")
    solo = campaign.batches[campaign.batches["kind"] == "solo"]
    assert set(solo["model"]) == {"ssd", "alexnet"}
    assert fit(campaign, "again").models == ("ssd", "alexnet")


def test_hup_reloads_the_policy_and_serving_goes_on(replaying: subprocess.Popen[str]) -> None:
    replaying.send_signal(signal.SIGHUP)
    assert replaying.stderr is not None
    assert any("policy edf was reloaded" in line for line in replaying.stderr)
    replaying.send_signal(signal.SIGTERM)
    stdout, _ = replaying.communicate(timeout=60)
    assert replaying.returncode == 0 and result_of(stdout)["offered"] > 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--policy", "nope"], "unknown policy 'nope'"),
        (["--policy", "missing.safetensors"], "missing.safetensors: no such checkpoint"),
        (["--models", "nope"], "no built-in model 'nope'"),
        (["--models", "net=serving.models.builtin.lstm:Lstm", "--profile", "cpu2"], "lacks model 'net'"),
        (["--replay", "bad.csv"], "bad.csv:3: "),
        (["--streams", "0"], "--streams: 0"),
        (["--explain"], "only a trained policy"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    flags: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(main_module, "set_up_logging", lambda *_: None)  # pytest's own handlers stay
    (tmp_path / "bad.csv").write_text("arrival_ms,model,priority,deadline_ms\n0,bert,high,5\nx,bert,high,5\n")
    assert main_module.main([*flags, "--record", "run", "--timeline", "timeline.json", "--logdir", "tb"]) == 2
    out, err = capsys.readouterr()
    assert message in err and len(err.strip().splitlines()) == 1
    assert out == ""
    assert [p.name for p in tmp_path.iterdir()] == ["bad.csv"], "nothing is half written"


def test_the_real_process_refuses_bad_input_in_one_line(tmp_path: Path) -> None:
    ended = serve("--policy", "missing.safetensors", "--record", "run", cwd=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: missing.safetensors: no such checkpoint")
    assert len(ended.stderr.strip().splitlines()) == 1 and not list(tmp_path.iterdir())


def test_help_shows_flags_signals_and_examples() -> None:
    ended = serve("--help")
    assert ended.returncode == 0
    for word in ("--replay", "--policy", "--drain_timeout", "SIGHUP", "Examples"):
        assert word in ended.stdout


def test_help_does_not_wait_for_torch() -> None:
    script = "import sys, serve; serve.main(['--help']); print('torch' in sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment(), capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip().splitlines()[-1] == "False"
