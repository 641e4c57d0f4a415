"""The demo: what it serves and writes. Training has tests of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agents.learned.policy_file import CHECKPOINT
from serving import demo

POLICIES = ("fifo", "strait", "ppo")


def test_every_policy_gets_the_same_requests_in_each_part_and_both_tables_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo.Demo, "train", lambda self, *args, **settings: str(CHECKPOINT))
    words = ["--out", str(tmp_path), "--policies", ",".join(POLICIES), "--models", "lstm,dlrm", "--device", "cpu"]
    assert demo.main([*words, "--duration", "2", "--turns", "2", "--streams", "2"]) == 0
    record = json.loads((tmp_path / "results.json").read_text())
    assert tuple(row["policy"] for row in record["results"]) == POLICIES
    assert len({row["offered"] for row in record["results"]}) == 1
    for row in record["results"]:
        assert row["offered"] == sum(row["outcomes"].values()) > 0
    assert {row["policy"] for row in record["simulated"]} == set(POLICIES)
    assert (tmp_path / "a100.png").stat().st_size > 10_000
    for policy in POLICIES:
        assert json.loads((tmp_path / f"timeline-{policy}.json").read_text())
        assert len(list((tmp_path / f"serve-{policy}").glob("turn-*/events*"))) == 2
    printed = capsys.readouterr().out
    for text in ("an A100, simulated", "this machine, live", "--from-log", "--view"):
        assert text in printed


def test_an_unknown_policy_is_refused_before_anything_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--out", str(tmp_path / "out"), "--policies", "fifo,nonesuch"]) == 2
    assert "nonesuch" in capsys.readouterr().err and not (tmp_path / "out").exists()
