"""A recording played back on the status page shows what the live server's page had shown."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from aiohttp.test_utils import TestClient, TestServer
from api_server import NAMES, X, make_executor, serving_plane

from serving.observers.recorder import Recorder
from serving.profiling.calibrate import machine_of, without_token
from serving.replay.__main__ import main, view_app
from serving.replay.recording import Playback, read_recording
from traces.machine import ModelInfo

SLOW = np.full(4, 30, np.float32)  # ms that it takes


class Clock:
    """Seconds that are set."""

    def __init__(self) -> None:
        self.s = 100.0

    def __call__(self) -> float:
        return self.s


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A recording, and the last answer of the server that was recorded."""
    folder = tmp_path_factory.mktemp("recording")

    async def serve() -> dict[str, Any]:
        executor = make_executor()
        described = [ModelInfo(**executor.models[name].describe()) for name in NAMES]
        machine = machine_of(executor, described, (1, 2, 4))
        recorder = Recorder(folder, lambda: machine, list)
        try:
            async with serving_plane(executor) as plane:
                plane.engine.observers.append(recorder)
                offer = plane.engine.submit_all
                for priority in (0, 1, 1):
                    await offer("double", priority, 5000.0, list(X))
                plane.engine.refuse("double", 0, 20.0, 2, "it is out of reach")
                await asyncio.sleep(0.6)
                await offer("slow", 1, 20.0, [SLOW])
                return plane.status()
        finally:
            recorder.close()
            executor.close()

    return folder, asyncio.run(serve())


def ends(answer: dict[str, Any]) -> Counter[tuple[str, str]]:
    return Counter(
        {
            (priority, outcome): sum(tick["ends"][priority].get(outcome, 0) for tick in answer["ticks"])
            for priority in ("high", "low")
            for outcome in ("met", "late", "dropped", "failed")
        }
    )


def test_all_is_shown_that_the_server_had_shown(recorded: tuple[Path, dict[str, Any]]) -> None:
    folder, live = recorded
    clock = Clock()
    playback = Playback(read_recording(folder), 2.0, clock)
    playback.status()
    clock.s += 1000.0
    shown = playback.status(1e-9)
    assert ends(shown) == ends(live)
    assert ends(shown)["high", "dropped"] == 2 and ends(shown)["low", "late"] == 1
    assert shown["batches"] == live["batches"] and len(live["batches"]) == 4
    assert [one["reason"] for one in shown["refusals"]] == ["deadline out of reach"]
    assert shown["server"]["streams"] == 2 and str(folder / "0000") in shown["server"]["note"]


def test_it_goes_at_its_speed_and_begins_again_for_a_new_page(recorded: tuple[Path, dict[str, Any]]) -> None:
    clock = Clock()
    recording = read_recording(recorded[0])
    playback = Playback(recording, 2.0, clock)
    first = playback.status()
    clock.s += 0.05
    second = playback.status(first["now_ms"])
    assert second["now_ms"] == pytest.approx(first["now_ms"] + 100.0)
    whole = [batch.seen_ms for batch in recording.batches]
    so_far = sum(seen <= second["now_ms"] for seen in whole)
    assert len(first["batches"]) + len(second["batches"]) == so_far
    clock.s += 1000.0
    over = playback.status(second["now_ms"])
    assert over["started_s"] == first["started_s"] and over["now_ms"] > second["now_ms"]
    assert playback.status(over["now_ms"])["now_ms"] == over["now_ms"], "it stands at its end"
    again = playback.status(0.0)
    assert again["started_s"] != first["started_s"] and again["now_ms"] == first["now_ms"]


async def test_the_same_page_is_served(recorded: tuple[Path, dict[str, Any]]) -> None:
    async with TestClient(TestServer(view_app(Playback(read_recording(recorded[0]))))) as client:
        page = await client.get("/")
        assert "status.js" in await page.text() and "Content-Security-Policy" in page.headers
        answer = await client.get("/v2/status")
        assert answer.status == 200 and orjson.loads(await answer.read())["server"]["policy"] == "not recorded"
        assert (await client.get("/v2/status?since=x")).status == 400


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--view", "nowhere"], "--view nowhere: no recording; expected a folder that serve.py --record wrote"),
        (["--view", "nowhere", "--speed", "0"], "--speed: 0.0; it must be a number above 0"),
        (["--view", "nowhere", "--port", "70000"], "--port: 70000; it must be from 0 to 65535"),
    ],
)
def test_what_cannot_be_shown_is_refused_in_one_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert capsys.readouterr().err == f"error: {said}\n"


def test_a_token_on_the_command_line_is_neither_recorded_nor_shown() -> None:
    assert without_token("python serve.py --token s3cret --port 80") == "python serve.py --token ... --port 80"
    assert without_token("python serve.py --token='s3$cret'") == "python serve.py --token=..."
    assert without_token("python serve.py --token_file /etc/token") == "python serve.py --token_file /etc/token"
