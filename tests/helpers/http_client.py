"""A raw HTTP client of the server."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import numpy as np
from api_server import X, serving_plane

from serving.api.dataplane import DataPlane
from serving.api.http import start_http
from serving.executors.cpu import CpuExecutor


class Client:
    """Raw requests to one server."""

    def __init__(self, plane: DataPlane, port: int, session: aiohttp.ClientSession) -> None:
        self.plane = plane
        self.port = port
        self.session = session

    async def ask(self, method: str, path: str, **more: Any) -> tuple[int, Any, Any]:
        """Status, JSON body and headers."""
        async with self.session.request(method, f"http://127.0.0.1:{self.port}{path}", **more) as response:
            return response.status, json.loads(await response.read()), response.headers

    async def infer(self, model: str = "double", values: np.ndarray = X, **more: Any) -> tuple[int, Any, Any]:
        return await self.ask("POST", f"/v2/models/{model}/infer", json=body(values, **more))


@asynccontextmanager
async def opened(executor: CpuExecutor, **settings: Any) -> AsyncIterator[Client]:
    async with serving_plane(executor, **settings) as plane:
        listener = await start_http(plane)
        async with aiohttp.ClientSession() as session:
            yield Client(plane, listener.port, session)
        await listener.close()


def body(values: np.ndarray = X, **parameters: Any) -> dict[str, Any]:
    tensor = {"name": "input", "datatype": "FP32", "shape": list(values.shape), "data": values.ravel().tolist()}
    return {"id": "seven", "inputs": [tensor], "parameters": parameters}
