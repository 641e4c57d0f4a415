"""The leaderboard: order, means and intervals over seeds, and the command line."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from agents.evaluation import metric
from agents.leaderboard import main, markdown, rank

RATES = {"strait": (0.1, 0.3), "fifo": (0.5, 0.7), "edf": (0.2, 0.4)}  # weighted, of seeds 0 and 1


def frame(*policies: str) -> pd.DataFrame:
    rows = [
        {"policy": policy, "workload": "bursty", "load": load, "seed": seed, "weighted": rate + shift}
        | {metric.VIOLATION_HIGH: rate, metric.VIOLATION_LOW: 2 * rate}
        for policy in policies
        for seed, rate in enumerate(RATES[policy])
        for load, shift in ((0.9, -0.05), (1.1, 0.05))
    ]
    return pd.DataFrame(rows)


def test_policies_are_ranked_by_weighted_violations_with_intervals_over_seeds() -> None:
    scores = rank(frame("fifo", "strait", "edf"))
    assert list(scores) == ["strait", "edf", "fifo"]
    # The spread over loads is no uncertainty: the interval of two seeds ends at their means.
    assert scores["edf"]["weighted"] == pytest.approx((20.0, 30.0, 40.0))
    assert scores["edf"]["high"][1] == pytest.approx(30.0) and scores["edf"]["low"][1] == pytest.approx(60.0)
    assert scores["fifo"]["minus_strait"] == pytest.approx((40.0, 40.0, 40.0))  # paired by seed
    assert scores["strait"]["minus_strait"] == pytest.approx((0.0, 0.0, 0.0))
    lines = markdown(scores).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| 1 | strait |") and lines[4].endswith("| +40.00 [+40.00, +40.00] |")


def test_without_strait_nothing_is_compared_with_it() -> None:
    scores = rank(frame("fifo", "edf"))
    assert "minus_strait" not in scores["fifo"] and "minus Strait" not in markdown(scores)


@pytest.mark.slow
def test_the_command_prints_a_table_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--profile=cpu2", "--policies=fifo,strait", "--loads=1.0", "--seeds=2", "--duration-ms=300", "--workers=1"]
    assert main(words) == 0
    printed = capsys.readouterr().out.splitlines()
    result = json.loads(printed[-1])
    assert set(result["policies"]) == {"fifo", "strait"} and result["capacity_rps"] > 0
    first = next(iter(result["policies"]))
    assert printed[2].startswith(f"| 1 | {first} |")
    for score in result["policies"].values():
        for low, mean, high in score.values():
            assert low <= mean <= high
    assert main(["--policies", "nobody"]) == 2
    assert "nobody" in capsys.readouterr().err
