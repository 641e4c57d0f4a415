"""/v2/schedule: what a high-priority request counts is read and changed while requests are served."""

from __future__ import annotations

import aiohttp
import pytest
from api_server import serving_plane

from serving.api.http import start_http
from serving.executors.cpu import CpuExecutor


async def test_the_weight_of_high_priority_changes_while_serving(executor: CpuExecutor) -> None:
    async with serving_plane(executor) as plane, aiohttp.ClientSession() as session:
        listener = await start_http(plane)
        url = f"http://127.0.0.1:{listener.port}/v2/schedule"
        async with session.get(url) as response:
            before = await response.json()
        assert before == {"policy": plane.engine.guard.name, "high_weight": 5.0}
        async with session.post(url, json={"high_weight": 8}) as response:
            assert response.status == 200 and await response.json() == before | {"high_weight": 8.0}
        assert plane.engine.scheduler.high_weight == plane.engine.scheduler.state.scheduler["high_weight"][0] == 8.0
        await listener.close()


@pytest.mark.parametrize(
    "body", [{}, [], {"high_weight": 0}, {"high_weight": True}, {"high_weight": "8"}, {"weight": 8}]
)
async def test_what_is_no_weight_is_refused_and_changes_nothing(executor: CpuExecutor, body: object) -> None:
    async with serving_plane(executor) as plane, aiohttp.ClientSession() as session:
        listener = await start_http(plane)
        async with session.post(f"http://127.0.0.1:{listener.port}/v2/schedule", json=body) as response:
            assert response.status == 400 and "\n" not in (await response.json())["error"]
        assert plane.engine.scheduler.high_weight == 5.0
        await listener.close()
