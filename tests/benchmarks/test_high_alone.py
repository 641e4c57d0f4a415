"""High priority alone: what is left of a workload, and what is violated then."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks.high_alone import high_only, main
from traces.workload import Workload


def test_only_low_priority_is_removed() -> None:
    n = np.arange(6)
    whole = Workload(10.0 * n, n % 3, n % 2, 50.0 + n, ("a", "b", "c"))
    left = high_only(whole)
    assert left.arrival_ms.tolist() == [0.0, 20.0, 40.0] and left.model.tolist() == [0, 2, 1]
    assert left.deadline_ms.tolist() == [50.0, 52.0, 54.0] and not left.priority.any()


def test_high_priority_alone_is_violated_less_than_beside_low_priority(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--policies", "[fifo,strait]", "--loads", "[0.5,1.2]", "--seeds", "2", "--duration_ms", "1000"]
    assert main(words) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    alone, policies, most = (result[key] for key in ("alone", "policies", "most"))
    assert alone["0.5"] <= alone["1.2"] < policies["fifo"]["1.2"]
    for load in ("0.5", "1.2"):
        assert most[load] == pytest.approx(policies["fifo"][load] - alone[load], rel=1e-3)
        assert alone[load] <= policies["strait"][load]
