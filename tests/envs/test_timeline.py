"""The timeline of a simulated episode, and its picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agents.policies.registry import make_policy
from agents.timeline import main
from envs.drawing.timeline import draw_timeline, episode
from envs.drawing.trace_events import trace_events
from envs.profiles.profile import synthetic_profile
from envs.simulation.simulator import Simulator
from traces.errors import InputError
from traces.workload import Workload


def simulated() -> tuple[list, list]:
    profile = synthetic_profile(seed=0)
    n = np.arange(80)
    workload = Workload(1.0 * n, n % len(profile.models), n % 2, np.full(80, 60.0), profile.models)
    sim = Simulator(profile, 1, 3)
    sim.load([workload])
    sim.begin([1])
    return episode(sim, make_policy("edf").decide)


def test_every_request_and_batch_is_there_once_and_in_order() -> None:
    requests, batches = simulated()
    assert len(requests) == 80
    served = [r for r in requests if r.batch_id >= 0]
    assert sum(b.batch_size for b in batches) == len(served)
    assert sorted(b.batch_id for b in batches) == list(range(len(batches)))
    size = {b.batch_id: b for b in batches}
    for b in batches:
        assert list(b.phases) == sorted(b.phases) and b.predicted_ms > 0
    for r in served:
        b = size[r.batch_id]
        assert (r.model, r.priority) == (b.model, b.priority)
        assert r.start_ms == b.phases.dispatch_ms and r.finish_ms == pytest.approx(b.phases.d2h_end_ms)
        assert (r.outcome == "met") == (r.finish_ms <= r.deadline_ms)
    for k in {b.stream for b in batches}:
        mine = sorted((b.phases.dispatch_ms, b.phases.d2h_end_ms) for b in batches if b.stream == k)
        assert all(end <= start + 1e-9 for (_, end), (start, _) in zip(mine, mine[1:]))
    assert len([e for e in trace_events(requests, batches) if e["ph"] == "X"]) == 3 * len(batches)


def test_the_picture_is_small_and_light(tmp_path: Path) -> None:
    requests, batches = simulated()
    path = tmp_path / "timeline.png"
    draw_timeline(requests, batches, path, (0.0, 100.0), "edf")
    with Image.open(path) as picture:
        assert np.asarray(picture.convert("L")).mean() > 150
    assert path.stat().st_size < 200_000
    with pytest.raises(InputError, match="nothing to draw"):
        draw_timeline([], [], path)
    with pytest.raises(InputError, match=r"\.png or \.svg"):
        draw_timeline(requests, batches, tmp_path / "timeline.pdf")


def test_bad_input_is_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path / "t.png"), "--policy", "nope"]) == 2
    error = capsys.readouterr().err
    assert "unknown policy 'nope'" in error and len(error.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
