"""The tests that need a GPU, one by one; each counts for itself, also where one of them ends its process."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_day.step import Context

ROOT = Path(__file__).resolve().parents[2]
MARK = "pytest.mark.gpu"
MOST_S = 60.0  # of one test


class Reporter:
    """Keeps how each test ended, and saves that after each of them.

    Args:
        context: of the step.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self.tests: dict[str, dict[str, Any]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take up a part of a test; what fails in its set-up or afterwards fails the test."""
        test = self.tests.setdefault(report.nodeid, {"outcome": "passed", "seconds": 0.0})
        test["seconds"] += report.duration
        if report.outcome != "passed":
            test["outcome"] = report.outcome
            test["why"] = report.longreprtext[-2000:]
        if report.when == "teardown" or report.outcome == "failed":
            self.context.save("tests.json", self.tests)

    def count(self, outcome: str) -> int:
        """How many tests ended so."""
        return sum(test["outcome"] == outcome for test in self.tests.values())


def gpu_files(root: Path = ROOT) -> list[str]:
    """The files of tests that need a GPU; others may import what is not installed beside a GPU."""
    return sorted(str(p) for p in (root / "tests").rglob("test_*.py") if MARK in p.read_text(encoding="utf-8"))


def run_tests(context: Context) -> dict[str, Any]:
    """Run them. A crash or a hang ends one worker process, and another one goes on with the next test.

    Raises:
        RuntimeError: a test failed, or none ran on a GPU.
    """
    reporter = Reporter(context)
    limit_s = min(MOST_S, max(5.0, context.left_s / 2))
    words = ["-m", "gpu", "-n", "1", "-p", "no:cacheprovider", f"--timeout={limit_s:.0f}", "--timeout-method=thread"]
    status = pytest.main([*words, f"--rootdir={ROOT}", *gpu_files()], [reporter])
    context.save("tests.json", reporter.tests)
    figures = {outcome: reporter.count(outcome) for outcome in ("passed", "failed", "skipped")}
    context.save("result.json", figures | {"seconds": time.monotonic() - context.begun})
    failed = [name for name, test in reporter.tests.items() if test["outcome"] == "failed"]
    if status != 0 or (context.device != "cpu" and not figures["passed"]):
        raise RuntimeError(f"{figures}, status {int(status)}; failed: {', '.join(failed) or 'none'}")
    return figures
