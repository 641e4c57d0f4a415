"""A day on a GPU: whatever a step does, the files of the others come back; and what comes back can be adopted."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from gpu_day_faults import FAULT, FAULTS, KEPT
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement

from benchmarks.gpu_day import install
from benchmarks.gpu_day.adopt import short_name
from benchmarks.gpu_day.command import main
from benchmarks.gpu_day.networks import LargeDlrm
from benchmarks.gpu_day.runner import SUMMARY
from benchmarks.gpu_day.step import function_of
from benchmarks.gpu_day.steps import STEPS, share_s
from envs.profiles.profile import Profile
from serving.models.cost import count_weights
from traces.measurements import Measurements

ROOT = Path(__file__).resolve().parents[2]
HELPER = "from gpu_day_faults import main; main()"
# In the order of FAULTS.
SIGNS = ("illegal memory access", "ended after", "SIGSEGV", "MemoryError", "is the disk full", "SIGKILL")
SOON_S = 60.0


class Days:
    """Starts days in processes of their own."""

    def __init__(self, folder: Path) -> None:
        self.out, self.work = folder / "out", folder / "work"
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, steps: list[list[Any]], device: str = "cpu", fault: str = "", **settings: Any) -> subprocess.Popen:
        """Steps are [name, group, work, weight, least_s]."""
        told = {"steps": steps, "out": str(self.out), "work": str(self.work), "device": device}
        path = os.pathsep.join((str(ROOT), str(ROOT / "tests" / "helpers")))
        process = subprocess.Popen(
            [sys.executable, "-c", HELPER, json.dumps(told | {"seconds": 600.0, "patience": 1.0} | settings)],
            env={**os.environ, "PYTHONPATH": path} | ({FAULT: fault} if fault else {}),
            cwd=ROOT,
        )
        self.processes.append(process)
        return process

    def summary(self) -> dict[str, Any]:
        return json.loads((self.out / SUMMARY).read_text())

    def names(self, group: str) -> set[str]:
        """The files that came back of a group."""
        with zipfile.ZipFile(self.out / f"{group}.zip") as packed:
            assert packed.testzip() is None
            return set(packed.namelist())


@pytest.fixture
def days(tmp_path: Path) -> Iterator[Days]:
    made = Days(tmp_path)
    yield made
    for process in made.processes:
        process.kill()
        process.wait()


def stand_in(place: int, name: str) -> list[Any]:
    """A step under the name of a real one; one that hangs is planned to take no time, so that it is soon ended."""
    step = STEPS[place]
    return [step.name, step.group, f"gpu_day_faults:{name}", 1e-6 if name == "hangs" else 1.0, 0.0]


@pytest.mark.parametrize("shift", [0, 3])
def test_a_step_that_fails_in_any_way_costs_only_itself(shift: int, days: Days) -> None:
    """Steps fail in every way, and succeed between others that fail."""
    kinds = ["fine", *(fault.__name__ for fault in FAULTS)]
    chosen = [kinds[(place + shift) % len(kinds)] for place in range(len(STEPS))]
    # The last step of a day has all the time that is left, so that none of these may be the last.
    last = ["last", "rest", "gpu_day_faults:fine", 1.0, 0.0]
    assert days.start([*(stand_in(place, kind) for place, kind in enumerate(chosen)), last]).wait(300) == 0
    summary = days.summary()
    assert summary["state"] == "done" and list(summary["steps"]) == [*(step.name for step in STEPS), "last"]
    signs = dict(zip(kinds[1:], SIGNS, strict=True))
    for step, kind in zip(STEPS, chosen, strict=True):
        found = summary["steps"][step.name]
        assert f"{step.name}/{KEPT}" in days.names(step.group)
        if kind == "fine":
            assert found["state"] == "done" and found["figures"] == {"answer": 42}
        else:
            assert found["state"] == ("timed out" if kind == "hangs" else "failed")
            assert signs[kind] in found["error"]
    assert len(list(days.out.iterdir())) <= 8


@pytest.mark.parametrize("place", [0, 3, len(STEPS) - 1])
def test_a_day_killed_in_a_step_leaves_its_summary_and_no_process(place: int, days: Days) -> None:
    steps = [stand_in((place + 1) % len(STEPS), "fine"), stand_in(place, "hangs")]
    process = days.start(steps, grace_s=600.0)
    started = days.work / STEPS[place].group / STEPS[place].name / KEPT
    wait_for(started.is_file)
    process.kill()
    states = [step["state"] for step in days.summary()["steps"].values()]
    assert states == ["done", "running"] and days.summary()["state"] == "running"
    before = STEPS[(place + 1) % len(STEPS)]
    assert f"{before.name}/{KEPT}" in days.names(before.group)
    pid = json.loads(started.read_text())
    wait_for(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


def test_a_day_that_is_asked_to_end_packs_what_is_there(days: Days) -> None:
    process = days.start([stand_in(0, "fine"), stand_in(3, "hangs"), stand_in(5, "fine")], grace_s=600.0)
    wait_for((days.work / "profile" / "profile" / KEPT).is_file)
    process.send_signal(signal.SIGTERM)
    process.wait(SOON_S)
    summary = days.summary()
    assert summary["state"] == "stopped"
    assert [step["state"] for step in summary["steps"].values()] == ["done", "failed", "waiting"]
    assert f"profile/{KEPT}" in days.names("profile")


def test_a_full_disk_ends_no_day(days: Days) -> None:
    assert days.start([stand_in(0, "fine"), stand_in(1, "fine")], full=True).wait(SOON_S) == 0
    assert not list(days.out.iterdir())
    assert (days.work / "device" / "gpu_tests" / KEPT).is_file(), "the last step ran"


def wait_for(condition: Any) -> None:
    end = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.02)


def on_fake_device(*names: str) -> list[list[Any]]:
    return [[s.name, s.group, "gpu_day_faults:on_fake_device", s.weight, 0.0] for s in STEPS if s.name in names]


@pytest.mark.slow
def test_steps_run_on_the_cuda_executor(days: Days) -> None:
    steps = on_fake_device("profile", "launches")
    assert days.start(steps, "cuda:0", seconds=10.0, patience=15.0).wait(590) == 0
    assert {name: (s["state"], s["error"]) for name, s in days.summary()["steps"].items()} == {
        name: ("done", "") for name, *_ in steps
    }
    batches = Measurements.load(days.work / "profile" / "profile" / "measurements").batches
    assert set(batches["priority"]) == {0, 1} and set(batches["kind"].astype(str)) == {"solo", "colocation"}


@pytest.mark.slow
@pytest.mark.parametrize("fault", [f.__name__ for f in FAULTS[:3]])  # an error, a hang, a crash
def test_a_fault_of_the_device_ends_its_step_alone(fault: str, days: Days) -> None:
    [profile] = on_fake_device("profile")
    steps = [[*profile[:3], 1.0, 0.0], [*stand_in(5, "fine")[:3], 3.0, 0.0]]
    days.start(steps, "cuda:0", fault, seconds=40.0, patience=1.0 if fault == "hangs" else 15.0).wait(590)
    states = {name: step["state"] for name, step in days.summary()["steps"].items()}
    assert states == {"profile": "timed out" if fault == "hangs" else "failed", "live": "done"}
    assert f"profile/{KEPT}" in days.names("profile")


@given(st.floats(1.0, 600.0), st.lists(st.floats(0.0, 2.0), min_size=len(STEPS), max_size=len(STEPS)))
def test_a_day_is_never_planned_longer_than_it_is(seconds: float, pace: list[float]) -> None:
    left = seconds
    for place, factor in enumerate(pace):
        planned = share_s(left, STEPS[place:])
        assert 0 <= planned <= left * (1 + 1e-9)
        left = max(0.0, left - factor * planned)


def test_every_step_exists() -> None:
    for step in STEPS:
        assert callable(function_of(step.work))
    assert len({step.group for step in STEPS}) + 2 <= 8, "with the summary and the logs"


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def needed() -> set[str]:
    """Everything that the server, the benchmarks and the tests for a GPU import, by name, on the machine's Python."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    tests = ["pytest", "pytest-asyncio", "pytest-timeout", "pytest-xdist"]
    left = [Requirement(text) for text in (*project["dependencies"], *project["optional-dependencies"]["grpc"], *tests)]
    seen: set[tuple[str, frozenset[str]]] = set()
    machine = {"python_version": "3.12", "python_full_version": "3.12.3"}
    while left:
        one = left.pop()
        key = (normal(one.name), frozenset(one.extras))
        if key not in seen:
            seen.add(key)
            for text in requires(one.name) or []:
                other = Requirement(text)
                marker = other.marker
                if marker is None or any(marker.evaluate({**machine, "extra": e}) for e in ("", *one.extras)):
                    left.append(other)
    return {name for name, _ in seen}


def test_what_is_needed_is_there_or_travels() -> None:
    wheels, provided = ({normal(name) for name in install.names(f"{file}.txt")} for file in ("wheels", "provided"))
    assert not wheels & provided
    # torch for CUDA needs more of its own, which it brings.
    assert needed() - wheels - provided == set()
    assert wheels - needed() == set()


def test_without_wheels_one_line_says_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "missing", lambda: ["gymnasium"])
    with pytest.raises(SystemExit, match="gymnasium: not installed.*make gpu-wheels"):
        install.install(tmp_path)


@pytest.mark.parametrize(
    ("device", "name"),
    [("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA H200", "h200"), ("NVIDIA L40S", "l40s"), ("A CPU (R)", "a-cpu-r")],
)
def test_files_are_called_after_the_devices_model(device: str, name: str) -> None:
    assert short_name(device) == name


@pytest.mark.slow
def test_the_rehearsal_passes_and_can_be_adopted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, root = tmp_path / "day", tmp_path / "root"
    words = ["--device", "cpu", "--models", "lstm,dlrm", "--seconds", "17", "--patience", "200", "--out", str(out)]
    run = subprocess.run([sys.executable, "-m", "benchmarks.gpu_day", *words], cwd=ROOT, stdout=subprocess.PIPE)
    summary = json.loads((out / SUMMARY).read_text())
    assert {name: (s["state"], s["error"]) for name, s in summary["steps"].items()} == {
        step.name: ("done", "") for step in STEPS
    }
    assert run.returncode == 0
    (root / "docs").mkdir(parents=True)
    (root / "README.md").write_text("# Title\n")
    row = "| CUDA executor | none | none | none | none |\n\n"
    (root / "docs" / "results.md").write_text(f"{row}<!-- figures: gpu-live -->\n<!-- end -->\n")
    assert main(["--adopt", str(out), "--into", str(root), "--trials", "0"]) == 0
    device = summary["steps"]["facts"]["figures"]["device"]["name"]
    results = (root / "docs" / "results.md").read_text()
    assert f"| CUDA executor | `python -m benchmarks.gpu_day` | {device} |" in results and "strait" in results
    campaign = Measurements.load(root / "traces" / "data" / short_name(device))
    profile = Profile.load(str(root / "envs" / "profiles" / "data" / f"gpu-{short_name(device)}.json"))
    assert profile.models == tuple(model.name for model in campaign.machine.models)
    (out / "profile.zip").write_bytes(b"half a file")
    assert main(["--adopt", str(out), "--into", str(root)]) == 2
    assert "profile.zip: broken" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "weights", "shape"),
    [
        ("resnet50", 25.5e6, (3, 224, 224)),
        ("bert_base", 109e6, (128,)),
        ("vit_base", 86.6e6, (3, 224, 224)),
        ("lstm", 14.7e6, (32, 256)),
        ("mobilenet", 1.6e6, (3, 224, 224)),
    ],
)
def test_networks_have_their_real_size_and_answer_in_float16(name: str, weights: float, shape: tuple[int, ...]) -> None:
    network = function_of(f"benchmarks.gpu_day.networks:{name}")().eval()  # type: ignore[call-arg]
    assert count_weights(network)[0] == pytest.approx(weights, rel=0.02)
    given = torch.zeros((1, *shape), dtype=torch.int64 if len(shape) == 1 else torch.float16)
    with torch.inference_mode():
        assert network(given).dtype == torch.float16


def test_a_large_table_repeats_its_rows_and_each_field_has_its_own() -> None:
    network = LargeDlrm(fields=3, rows=20_000, width=4, hidden=(8,)).eval()
    assert len(network.table.weight) == 60_000 and network.first_row.tolist() == [0, 20_000, 40_000]
    assert torch.equal(network.table.weight[1 << 14], network.table.weight[0])
    assert network(torch.full((2, 3), 19_999)).shape == (2, 1)
