"""The status page in Chromium: it draws, updates, shows why a request was refused, and asks for the token.

With AXE_CORE=axe.min.js (of the npm package axe-core) its accessibility is checked, too.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from http_client import Client, opened

from serving.executors.cpu import CpuExecutor

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
    "disable-component-update", "disable-sync", "remote-debugging-port=0",
)  # fmt: skip
COMPLAINTS = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian's package chromium), which is not here"),
    pytest.mark.slow,
]


class Tab:
    """A tab of a browser, driven over the Chrome DevTools Protocol.

    Attributes:
        complaints: what its console has said.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.complaints: list[str] = []
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._listening = asyncio.ensure_future(self._listen())

    async def _listen(self) -> None:
        async for message in self._socket:
            said = json.loads(message.data)
            if said.get("method") in COMPLAINTS:
                self.complaints.append(json.dumps(said["params"])[:500])
            elif "id" in said:
                self._answers.pop(said["id"]).set_result(said)

    async def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a method of the protocol."""
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": params})
        said = await asyncio.wait_for(answer, 60.0)
        assert "error" not in said, said
        return said["result"]

    async def run(self, script: str) -> Any:
        """The value of an expression of JavaScript, awaited."""
        result = await self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def until(self, script: str) -> None:
        """Wait until an expression is true."""
        async with asyncio.timeout(30.0):
            while not await self.run(script):
                await asyncio.sleep(0.1)

    async def open(self, url: str, dark: bool = False, width: int = 1200) -> None:
        """Go to a page, and wait until it is there."""
        for domain in ("Page", "Runtime", "Log"):
            await self.ask(f"{domain}.enable")
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        await self.ask("Emulation.setEmulatedMedia", features=scheme)
        await self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        await self.ask("Page.navigate", url=url)
        await self.until(f"location.href === '{url}' && document.readyState === 'complete'")


@asynccontextmanager
async def a_tab() -> AsyncIterator[Tab]:
    """A tab of a browser of its own."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        flags = [f"--{flag}" for flag in (*FLAGS, f"user-data-dir={folder}")]
        process = await asyncio.create_subprocess_exec(
            str(CHROMIUM), *flags, "about:blank", stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
        )
        assert process.stderr is not None
        try:
            async with asyncio.timeout(60.0):
                while not (found := re.search(rb"ws://([\d.:]+)/", await process.stderr.readline())):
                    assert process.returncode is None, "Chromium has ended"
            draining = asyncio.ensure_future(process.stderr.read())
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://{found[1].decode()}/json/list") as response:
                    (target,) = [one for one in await response.json() if one["type"] == "page"]
                async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                    yield Tab(socket)
            draining.cancel()
        finally:
            process.terminate()
            await process.wait()


@asynccontextmanager
async def watched(executor: CpuExecutor, **settings: Any) -> AsyncIterator[tuple[Client, Tab]]:
    """A server that has served and refused a few requests, and a tab to see it in."""
    async with opened(executor, **settings) as client:
        if client.plane.config.token is None:
            await load(client)
        async with a_tab() as tab:
            yield client, tab


async def load(client: Client) -> None:
    for priority in (1, 2, 2):
        assert (await client.infer(priority=priority))[0] == 200
    assert (await client.infer(timeout=1))[0] == 504
    assert (await client.infer("<img src=x onerror=alert(1)>"))[0] == 404


BARS = "document.querySelectorAll('#timeline .batch').length"
ROWS = "[...document.querySelectorAll('#{} tbody tr')].map(row => [...row.cells].map(cell => cell.textContent))"


async def test_it_draws_updates_and_says_why_a_request_was_refused(executor: CpuExecutor) -> None:
    async with watched(executor) as (client, tab):
        await tab.open(f"http://127.0.0.1:{client.port}/")
        await tab.until(f"{BARS} >= 3")
        assert await tab.run("document.querySelectorAll('#violations .met').length") > 0
        wide = await tab.run("document.querySelector('#timeline .batch').getBoundingClientRect().width")
        assert wide >= 1
        refusals = {row[0]: row for row in await tab.run(ROWS.format("refusals"))}
        assert refusals["deadline out of reach"][1:4] == ["double", "low", "2"]
        assert "is out of reach" in refusals["deadline out of reach"][5]
        # A model's name is text, whatever it looks like.
        assert "<img src=x" in refusals["not_found"][5] and not await tab.run("document.images.length")
        high, low = await tab.run(ROWS.format("ends"))
        assert high[:2] == ["high", "2"] and low[:2] == ["low", "4"]
        (model,) = await tab.run(ROWS.format("models"))
        assert model[0] == "double" and float(model[5]) > 0 and float(model[6]) > 0
        assert await tab.run("document.getElementById('policy').textContent") == "edf"

        before = await tab.run("known.since")
        assert (await client.infer())[0] == 200
        await tab.until(f"known.since > {before} && {BARS} >= 4")
        await tab.run("document.getElementById('pause').click()")
        await asyncio.sleep(1.2)
        paused = await tab.run("known.since")
        await asyncio.sleep(1.5)
        assert await tab.run("known.since") == paused
        assert tab.complaints == []


async def test_it_asks_for_the_token_and_keeps_it_in_memory_only(executor: CpuExecutor) -> None:
    async with watched(executor, token="secret") as (client, tab):
        await tab.open(f"http://127.0.0.1:{client.port}/")
        await tab.until("!document.getElementById('token-form').hidden")
        assert "requires a bearer token" in await tab.run("document.getElementById('message').textContent")
        await tab.run("document.getElementById('token').value = 'secret'")
        await tab.run("document.querySelector('#token-form button').click()")
        await tab.until("document.getElementById('policy').textContent === 'edf'")
        assert await tab.run("document.getElementById('token-form').hidden")
        assert await tab.run("localStorage.length + sessionStorage.length + document.cookie.length") == 0
        assert await tab.run("location.href") == f"http://127.0.0.1:{client.port}/"


@pytest.mark.parametrize(("dark", "width"), [(False, 1200), (True, 400)], ids=["light", "dark and narrow"])
async def test_axe_finds_nothing(executor: CpuExecutor, dark: bool, width: int) -> None:
    if "AXE_CORE" not in os.environ:
        pytest.skip("needs AXE_CORE, the path of axe.min.js")
    axe = await asyncio.to_thread(Path(os.environ["AXE_CORE"]).read_text)
    async with watched(executor) as (client, tab):
        await tab.open(f"http://127.0.0.1:{client.port}/", dark, width)
        await tab.until(f"{BARS} >= 3")
        await tab.run("document.querySelector('details').open = true")
        await tab.run(f"{axe}\n;0")
        passed, found = await tab.run(
            "axe.run().then(found => [found.passes.map(one => one.id), "
            "found.violations.map(one => `${one.impact} ${one.id}: ${one.nodes[0].html}`)])"
        )
        assert {"color-contrast", "svg-img-alt"} <= set(passed) and found == []
