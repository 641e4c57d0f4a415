"""Figures in the documents come from files of results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agents.evaluation import metric
from benchmarks.figures import FiguresConfig, blocks_of, evaluation_table, fill, main, plain_table, read_results, run
from traces.errors import InputError

EMPTY = "# T\n\n<!-- figures: a -->\n\nNot measured yet.\n\n<!-- end -->\n\ntext\n\n<!-- figures: b -->\n<!-- end -->\n"
LIVE = {
    "device": "a device", "capacity_rps": 123.4, "load": 0.9, "trace": "poisson", "seconds": 61.2,
    "results": [
        {"policy": "edf", "offered": 12, "outcomes": {"met": 10, "late": 2, "dropped": 0}, metric.VIOLATION_HIGH: 0.25,
         metric.VIOLATION_LOW: 0.125, metric.LATENCY_P50_MS: 3.14, metric.LATENCY_P99_MS: None, metric.GOODPUT_RPS: 100.0},
    ],
}  # fmt: skip
CELL = {"high": 1.0, "low": 2.0, "weighted": 1.5, "weighted_minus_strait": [-0.5, -0.25, 0.1]}
EVALUATION = {"suite": "quick", "loads": [0.9, 1.1], "policies": {"ppo": {"0.9": CELL, "1.1": CELL}}}


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "page.md"
    path.write_text(EMPTY)
    return path


def test_a_block_is_filled_and_filled_again(document: Path, tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    for rate, shown in ((0.25, "25.00 %"), (0.5, "50.00 %")):
        LIVE["results"][0][metric.VIOLATION_HIGH] = rate
        results.write_text(json.dumps(LIVE, indent=1))
        assert run(FiguresConfig([f"a={results}"], into=[str(document)])) == {"a": ["page.md"]}
        text = document.read_text()
        assert f"| edf | {shown} | 12.50 % | 3.1 ms |" in text and "10 met, 2 late" in text and "a device" in text
        assert blocks_of(text) == ["a", "b"] and text.count("| edf |") == 1
        assert "Not measured" not in text and "\ntext\n" in text


def test_loads_and_policies_of_an_evaluation_are_chosen() -> None:
    text = evaluation_table(EVALUATION, [1.1], ["ppo"])
    assert "| policy | load 1.1 |" in text and "| ppo | 1.00 / 2.00; -0.25 [-0.50, +0.10] |" in text
    with pytest.raises(InputError, match="'edf'"):
        evaluation_table(EVALUATION, [], ["edf"])


def test_live_runs_and_their_simulation_are_shown(document: Path, tmp_path: Path) -> None:
    live, both = tmp_path / "live.json", tmp_path / "both.json"
    row = {"policy": "edf", "runs": 6, "p99_high_ms": 50.0, "goodput": 99.6}
    row |= {rate: [1.0, 2.0, 3.0] for rate in ("high", "low", "weighted")}
    steadied = {"points": [-2.5, -1.5, -0.5], "clear": True}
    claim = {"strait below edf in high": {"points": [-3.0, -2.0, -1.0], "clear": True, "at_common_speed": steadied}}
    of_both = {"traces": ["t"], "loads": [0.9], "device": "d", "capacity_rps": 5.0, "policies": [row], "claims": claim}
    live.write_text(json.dumps(of_both))
    cell = {"load": 0.9, "policy": "edf"}
    cell |= {f"{side}_{key}": 0.5 for side in ("live", "sim") for key in ("high", "low", "p99_ms", "busy")}
    verdict = {"max_violation_difference_points": 1.5, "mean_violation_difference_points": 0.5}
    verdict |= {"max_p99_difference_pct": 7.0, "same_order": True}
    config = {"repetitions": 2, "duration": 5.0, "trace": "bursty"}
    both.write_text(json.dumps({"machine": "m", "config": config, "explained": {"+ noise": verdict}, "cells": [cell]}))
    run(FiguresConfig([f"a={live}", f"b={both}"], into=[str(document)]))
    text = document.read_text()
    assert (
        "| edf | 2.00 % [1.00, 3.00] |" in text
        and "| strait below edf in high | -2.00 [-3.00, -1.00] | -1.50 [-2.50, -0.50] |" in text
    )
    assert "| + noise | 1.50 | 0.50 | 7.0 % | yes |" in text and "| 0.9 | edf | 0.50 / 0.50 % |" in text


def test_optimum_and_ablations_take_one_row_each(document: Path, tmp_path: Path) -> None:
    cell = {"weighted": 12.5, "optimum": 10.0, "distance": [1.0, 2.5, 4.0], "at_optimum_pct": 75.0}
    small, parts = tmp_path / "small.json", tmp_path / "parts.json"
    small.write_text(json.dumps({"suite": "small", "instances": 8, "unproven": 1, "policies": {"edf": cell}}))
    parts.write_text(json.dumps(EVALUATION | {"ablations": {"strait:static": [-0.1, 0.25, 0.5]}}))
    run(FiguresConfig([f"a={small}", f"b={parts}"], into=[str(document)]))
    text = document.read_text()
    assert "| edf | 12.50 | +2.50 [+1.00, +4.00] | 75 % |" in text and "10.00 %, mean over 7 instances" in text
    assert "| strait:static | +0.25 | -0.10 to +0.50 |" in text and "| ppo |" not in text


def test_json_is_found_among_what_a_benchmark_prints(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    path.write_text('warming up\n{"speed": 612345.0, "error": {"p90": 0.125}, "machine": "a box"}\nbye\n')
    text = plain_table(read_results(path))
    assert "| `speed` | 612,345 |" in text and "| `error.p90` | 0.125 |" in text and "Measured on a box." in text


@pytest.mark.parametrize(
    ("block", "message"),
    [("c", "NAME=FILE"), ("a=missing.json", "missing.json: no such file"), ("c={}", "no document has a block 'c'")],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    block: str, message: str, document: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.json").write_text("{}")
    block = block.replace("{}", str(tmp_path / "r.json"))
    assert main([block, "--into", json.dumps([str(document)])]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1
    assert document.read_text() == EMPTY


def test_a_block_that_is_not_closed_is_told() -> None:
    with pytest.raises(InputError, match="not closed"):
        fill("<!-- figures: a -->\n<!-- figures: b -->\n<!-- end -->\n", "a", "x")
