"""Fixtures shared by all tests."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import toy_models
from api_server import make_executor
from http_client import Client, opened

from serving.executors.cpu import CpuExecutor

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that no worker is left with one of them in the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real traces and GPU measurements beside the project; skips the test where it is absent."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("needs ../shared/data (real traces and GPU measurements), which is not here")
    return path


@pytest.fixture(autouse=True)
def gate() -> Iterator[threading.Event]:
    """What toy models wait for that are to take until something else has happened."""
    toy_models.GATE.clear()
    yield toy_models.GATE
    toy_models.GATE.set()


@pytest.fixture(scope="module")
def executor() -> Iterator[CpuExecutor]:
    """The API's toy models on two streams; tests of an executor or an engine have one of their own."""
    made = make_executor()
    yield made
    made.close()


@pytest.fixture
async def client(executor: CpuExecutor) -> AsyncIterator[Client]:
    """An HTTP client; the tests of gRPC have their own."""
    async with opened(executor) as made:
        yield made


@pytest.fixture
def executors() -> Iterator[list[CpuExecutor]]:
    """Two devices with toy models."""
    made = [make_executor(), make_executor()]
    yield made
    for one in made:
        one.close()
