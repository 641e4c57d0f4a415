"""The status page over HTTP, without a browser: its files and headers, its data, and the token."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import aiohttp
import numpy as np
import pytest
from api_server import BLOCKS, X, until
from http_client import Client, opened

from serving.executors.cpu import CpuExecutor
from serving.status.page import FILES, HEADERS


async def fetch(client: Client, path: str, **more: Any) -> tuple[int, str, Any]:
    async with client.session.get(f"http://127.0.0.1:{client.port}{path}", **more) as response:
        return response.status, await response.text(), response.headers


async def test_the_page_runs_nothing_but_its_own_files(client: Client) -> None:
    for path, (_, content_type) in FILES.items():
        status, text, headers = await fetch(client, path)
        assert status == 200 and headers["Content-Type"] == f"{content_type}; charset=utf-8"
        assert {name: headers[name] for name in HEADERS} == HEADERS
        for foreign in re.findall(r"(?:https?:)?//[\w.]+", text):
            assert foreign == "http://www.w3.org", "the name of SVG is no address"
    policy = HEADERS["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    page, script = [(await fetch(client, path))[1] for path in ("/", "/status.js")]
    assert set(re.findall(r'(?:src|href)="(.*?)"', page)) == {path[1:] for path in FILES} - {""}
    assert not re.search(r"\son\w+=|\sstyle=|<style", page)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script)


async def test_it_says_what_ran_how_it_ended_and_who_serves(client: Client) -> None:
    for priority in (1, 2, 2):
        assert (await client.infer(priority=priority))[0] == 200
    status, answer, _ = await client.ask("GET", "/v2/status")
    assert status == 200
    ends = {name: sum(tick["ends"][name].get("met", 0) for tick in answer["ticks"]) for name in ("high", "low")}
    assert ends == {"high": len(X), "low": 2 * len(X)}
    assert sum(batch["size"] for batch in answer["batches"]) == 3 * len(X)
    for batch in answer["batches"]:
        assert batch["model"] == "double" and batch["stream"] in (0, 1) and batch["error"] is None
        assert 0 < batch["start_ms"] < batch["end_ms"] <= answer["now_ms"] and batch["predicted_ms"] > 0
    assert answer["server"] == {
        "policy": "edf", "reason": "as --policy says", "high_weight": client.plane.engine.scheduler.high_weight,
        "accepting": True, "streams": 2, "busy": 0, "fallbacks": 0, "note": "",
    }  # fmt: skip
    assert (await client.ask("GET", f"/v2/status?since={answer['now_ms']}"))[1]["batches"] == []


async def test_it_says_why_a_policy_was_replaced(client: Client) -> None:
    client.plane.engine.guard.replaced = "it raised ValueError"
    server = (await client.ask("GET", "/v2/status"))[1]["server"]
    assert (server["policy"], server["reason"]) == ("strait", "it replaced edf: it raised ValueError")


async def test_queues_are_shown_while_they_are_full(client: Client, gate: Any) -> None:
    held = [asyncio.ensure_future(client.infer("slow", BLOCKS)) for _ in range(2)]
    await until(lambda: client.plane.engine.in_flight == 2)
    queued = asyncio.ensure_future(client.infer("double", X, priority=1))
    await until(lambda: client.plane.engine.queued == len(X))
    await asyncio.sleep(0.3)  # the next tick
    answer = (await client.ask("GET", "/v2/status"))[1]
    assert answer["ticks"][-1]["queued"] == {"double": [len(X), 0]} and answer["server"]["busy"] == 2
    gate.set()
    await asyncio.gather(queued, *held)


async def test_it_says_what_was_refused_and_why(client: Client) -> None:
    assert (await client.infer(timeout=1))[0] == 504
    assert (await client.infer("nowhere"))[0] == 404
    assert (await client.infer("faulty", np.full((1, 4), 666, np.float32)))[0] == 500
    refusals = {one["reason"]: one for one in (await client.ask("GET", "/v2/status"))[1]["refusals"]}
    assert refusals["deadline out of reach"]["model"] == "double"
    assert "is out of reach" in refusals["deadline out of reach"]["message"]
    assert "'nowhere' is not served" in refusals["not_found"]["message"]
    assert "cursed" in refusals["fault"]["message"]


@pytest.mark.parametrize("since", ["x", "-1", "nan", "inf", ""])
async def test_a_malformed_time_is_refused(client: Client, since: str) -> None:
    status, answer, _ = await client.ask("GET", f"/v2/status?since={since}")
    assert status == 400 and answer["error"].startswith("since: ")


async def test_the_page_is_open_and_its_data_asks_for_the_token(executor: CpuExecutor) -> None:
    async with opened(executor, token="secret") as client:
        for path in FILES:
            assert (await fetch(client, path))[0] == 200
        assert (await fetch(client, "/v2/status"))[0] == 401
        assert (await fetch(client, "/v2/status", headers={"Authorization": "Bearer secret"}))[0] == 200


async def test_a_head_request_has_the_headers_too(client: Client) -> None:
    async with aiohttp.ClientSession() as session, session.head(f"http://127.0.0.1:{client.port}/") as response:
        assert response.status == 200 and "Content-Security-Policy" in response.headers
