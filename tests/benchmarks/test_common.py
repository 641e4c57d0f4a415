"""What benchmarks share: the command, the tables, the bare HTTP client; the summary of an overload, and learning curves."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from benchmarks.common.command import as_command
from benchmarks.common.open_loop import Answer
from benchmarks.common.server import Connection, closed_loops, http_message, running, wait_until_up
from benchmarks.common.tables import table
from benchmarks.learning_curves import LearningCurves, short_name
from benchmarks.learning_curves import main as learning_curves
from benchmarks.overload import summarise
from traces.errors import InputError


@dataclass
class Settings:
    """Settings.

    Attributes:
        value: a number.
    """

    value: float = 1.0


def test_figures_are_printed_as_a_table_and_last_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    main = as_command(
        lambda s: {"a": {"x": s.value / 3}, "none": float("nan"), "good": s.value > 0}, Settings, "n", None
    )
    assert main(["--value", "2"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert found["a"] == {"x": 0.66667} and found["none"] is None and "cores" in found["machine"]
    assert any(line.split() == ["|", "a", "|", "0.6667", "|"] for line in lines)


def test_a_check_that_fails_is_the_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    main = as_command(lambda s: {"good": s.value > 0}, Settings, "n", None, check="good")
    assert (main(["--value", "1"]), main(["--value", "-1"]), main(["--value", "x"])) == (0, 1, 2)


def test_tables_are_aligned() -> None:
    assert table(("name", "n"), [("a", "10")]).splitlines() == ["| name |   n |", "| ---- | --: |", "| a    |  10 |"]


async def test_a_connection_is_used_again_until_the_server_closes_it() -> None:
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for extra in (b"", b"Connection: close\r\n"):
            head = await reader.readuntil(b"\r\n\r\n")
            seen.append(head.splitlines()[0] + await reader.readexactly(2 * (b"POST" in head)))
            writer.write(b"HTTP/1.1 503 No\r\n" + extra + b"Content-Length: 3\r\n\r\nyes")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        connection = await Connection.open(server.sockets[0].getsockname()[1])
        assert await connection.ask(http_message("/a")) == (503, b"yes") and not connection.closed
        assert await connection.ask(http_message("/b", b"xy")) == (503, b"yes") and connection.closed
    assert seen == [b"GET /a HTTP/1.1", b"POST /b HTTP/1.1xy"]


async def test_closed_loops_call_again_and_again() -> None:
    calls = 0

    async def call() -> None:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0.001)

    latencies_ms, seconds = await closed_loops([call, call], 0.02)
    assert len(latencies_ms) == calls > 2 and min(latencies_ms) >= 1.0 and seconds >= 0.02


async def test_a_server_that_ends_is_reported_at_once(tmp_path: Path) -> None:
    async def ask() -> None:
        raise OSError("refused")

    with running([sys.executable, "-c", "pass"], tmp_path, log=tmp_path / "log") as process:
        process.wait()
        with pytest.raises(RuntimeError, match="it does not answer: OSError"):
            await wait_until_up(process, ask, "it", 60.0)


def test_an_overload_is_summed_up_by_priority_and_status() -> None:
    answers = [Answer(0, 200, True, 10.0, 9.0), Answer(0, 200, False, 30.0, 9.0), Answer(1, 504, False, 5.0, 4.0)]
    found = summarise(pd.DataFrame(answers), deadline_ms=20.0)
    assert found["high"]["sent"] == 2 and found["high"]["violations"] == found["high"]["violations_at_client"] == 50.0
    assert found["low"]["violations"] == 100.0 and found["status"] == {"200": 2, "504": 1}
    assert found["refusals"] == {"504": {"n": 1, "p50_ms": 4.0, "p99_ms": 4.0}}


def test_an_environment_has_a_short_name_in_files() -> None:
    assert short_name("Strait/DualPriority-v2") == "dual-priority"
    assert short_name("Strait/DualPriority-Bursty-v0") == "dual-priority-bursty"
    with pytest.raises(InputError, match="no environment 'CartPole-v1'"):
        LearningCurves(envs=("CartPole-v1",))


@pytest.mark.slow
def test_a_learning_curve_is_drawn_beside_policies_by_rule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--steps", "16384", "--seeds", "1", "--episodes", "2", "--out", str(tmp_path)]
    assert learning_curves(words) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["dual-priority-tiny"]
    assert set(found) == {"ppo", "strait", "edf", "fifo"}
    assert all(0 <= rate <= 100 for rates in found.values() for rate in rates.values())
    assert found["ppo"]["high"] > found["strait"]["high"], "it has only begun"
    assert (tmp_path / "learning-dual-priority-tiny.png").stat().st_size > 10_000
