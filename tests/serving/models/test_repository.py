"""What a repository says of its models while they are loaded, and when a load fails that nobody waits for."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from api_server import FakeRepository, serving_plane

from serving import profiler
from serving.executors.cpu import CpuExecutor
from serving.models.listing import Entry
from serving.models.repository import ModelRepository
from traces.errors import InputError


async def test_a_model_that_is_served_is_ready_whatever_a_load_under_way_has_noted(tmp_path: Path) -> None:
    """Doors read the index when the models change, which is before a load returns."""
    listed = tmp_path / "models.yaml"
    listed.write_text("- {name: late, source: 'toy_models:double', input_shape: [4]}\n")
    served: list[str] = []
    states = []

    def state() -> str:
        (row,) = repository.index()
        return row["state"]

    async def load(entry: Entry) -> None:
        states.append(state())
        served.append(entry.spec.name)
        states.append(state())

    async def unload(name: str) -> None:
        served.remove(name)

    repository = ModelRepository([str(listed)], lambda: served, load, unload)
    await repository.load("late")
    assert [*states, state()] == ["LOADING", "READY", "READY"]
    await repository.unload("late")
    assert state() == "UNAVAILABLE"


async def test_a_load_that_fails_after_its_caller_has_left_is_one_line_in_the_log(
    executor: CpuExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    begun = asyncio.Event()

    class Failing(FakeRepository):
        async def load(self, name: str, version: str = "") -> None:
            begun.set()
            await asyncio.sleep(0.05)
            raise InputError("its file is damaged")

    async with serving_plane(executor, Failing()) as plane:
        asked = asyncio.ensure_future(plane.load("other", {}))
        await begun.wait()
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        await asyncio.sleep(0.1)
    (line,) = [record for record in caplog.records if "nobody waits" in record.message]
    assert "cannot load model 'other'" in line.message and "its file is damaged" in line.message
    assert line.exc_info is None and "never retrieved" not in caplog.text


def test_where_a_campaign_cannot_be_written_is_told_before_it_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measured(*_: Any) -> None:
        raise AssertionError("nothing is to be measured")

    monkeypatch.setattr(profiler, "profile_device", measured)
    (tmp_path / "file").write_text("")
    assert profiler.main(["--out", str(tmp_path / "file")]) == 2
    assert "cannot be made a folder" in capsys.readouterr().err
