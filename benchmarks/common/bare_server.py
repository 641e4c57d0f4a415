"""The least server that Python has for a model.

aiohttp with one route, which reads a body, runs the model on a thread and answers a few bytes. It looks at no input, and knows
neither queues, deadlines nor batches: what it adds to a direct call, any server in Python adds.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial

import torch
from aiohttp import web

from benchmarks.common.direct import Direct, load_direct
from serving.models.listing import read_entries


def serve_bare(folder: str, port: int) -> None:
    """Serve the models of a folder, each from its first request on."""
    entries = read_entries([folder])
    thread = ThreadPoolExecutor(1, initializer=partial(torch.set_num_threads, 1))

    @cache
    def loaded(name: str) -> Direct:
        return load_direct(entries, name)

    async def infer(request: web.Request) -> web.Response:
        await request.read()
        model = loaded(request.match_info["model"])
        await asyncio.get_running_loop().run_in_executor(thread, model.run, 1)
        return web.Response(body=b"done")

    async def ready(_: web.Request) -> web.Response:
        return web.Response()

    app = web.Application(client_max_size=1 << 30)
    app.router.add_post("/v2/models/{model}/infer", infer)
    app.router.add_get("/v2/health/ready", ready)
    web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None)
