"""The decision benchmark: the state it builds, and the line it prints; times are not tested."""

from __future__ import annotations

import json

import numpy as np
import pytest

from agents.policies.registry import make_policy
from benchmarks.decision_latency import STREAMS, busy_simulator, fill, main
from envs.profiles.profile import Profile


def test_each_state_is_new_and_has_the_queues_and_batches_asked_for() -> None:
    sim = busy_simulator(Profile.load("cpu2"))
    answers, deadlines = set(), set()
    policy = make_policy("strait")
    for seed in range(20):
        fill(sim.state, sim.tables, np.uint64(seed), 256, 4)
        assert sim.state.scheduler[0].n_queued == 256
        assert sim.state.scheduler[0].n_free == STREAMS - 4
        assert sim.state.scheduler[0].forecast_valid == 0 or sim.state.scheduler[0].cached_model == -1
        answers.add(policy.decide(sim.state, sim.tables)[0])
        deadlines.add(float(sim.state.stream[0, 0].deadline))
    assert len(deadlines) == 20
    assert len(answers) > 2


def test_last_line_is_json_by_policy(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--policies", "fifo,strait", "--decisions", "20"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(result) == {"machine", "fifo", "strait"}
    for policy in ("fifo", "strait"):
        assert 0 < result[policy]["p50_us"] <= result[policy]["p99_us"]


def test_unknown_policy_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--policies", '["magic"]']) == 2
    assert "unknown policy 'magic'" in capsys.readouterr().err
