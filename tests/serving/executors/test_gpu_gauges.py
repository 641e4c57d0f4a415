"""The gauges of a GPU, against a driver library that answers as NVML does; no GPU is needed."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from api_server import make_executor, serving_plane

from serving.executors.cpu import CpuExecutor
from serving.executors.device import gpu_state
from serving.observers.prometheus import Metrics

UUIDS = ("11111111-aaaa", "22222222-bbbb")  # as NVML counts the GPUs of the machine
GAUGES = {
    "utilisation": 0.75, "memory_utilisation": 0.5, "memory_used_bytes": 3e9, "memory_total_bytes": 8e10, "power_w": 250.5,
    "temperature_c": 61.0, "sm_clock_mhz": 1410.0,
}  # fmt: skip


class FakeNvml(ModuleType):
    """What `device` calls of pynvml. Each GPU is known by its UUID only; an open handle is its index there."""

    NVML_TEMPERATURE_GPU, NVML_CLOCK_SM = 0, 1

    class NVMLError(Exception):
        """As the library's."""

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.open = 0
        self.asked: list[str] = []
        self.broken = ""

    def __getattr__(self, name: str) -> Any:
        answers = {
            "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=75, memory=50),
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=3 * 10**9, total=8 * 10**10),
            "nvmlDeviceGetPowerUsage": 250_500,  # mW
            "nvmlDeviceGetTemperature": 61,
            "nvmlDeviceGetClockInfo": 1410,
        }
        if name not in answers:
            raise AttributeError(name)

        def answer(handle: int, kind: int | None = None) -> Any:
            assert self.open == 1 and handle == 1, "of the GPU that was asked for"
            assert kind == {"nvmlDeviceGetTemperature": 0, "nvmlDeviceGetClockInfo": 1}.get(name)
            if name == self.broken:
                raise self.NVMLError(name)
            return answers[name]

        return answer

    def nvmlInit(self) -> None:  # noqa: N802 (its name)
        if self.broken == "nvmlInit":
            raise self.NVMLError("no driver")
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:  # noqa: N802
        self.asked.append(uuid)
        known = [f"GPU-{one}" for one in UUIDS]
        if uuid not in known:
            raise self.NVMLError("not found")
        return known.index(uuid)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    # CUDA_VISIBLE_DEVICES=1: CUDA's first GPU is the machine's second.
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=UUIDS[1]))
    return fake


def test_the_gauges_are_those_of_cudas_gpu_in_our_units(nvml: FakeNvml) -> None:
    assert gpu_state("cuda:0") == pytest.approx(GAUGES)
    assert nvml.asked == [f"GPU-{UUIDS[1]}"], "not the machine's first"
    assert nvml.open == 0, "each look is closed"


@pytest.mark.parametrize("broken", ["nvmlInit", "nvmlDeviceGetPowerUsage", "nvmlDeviceGetClockInfo"])
def test_a_gauge_that_cannot_be_read_is_left_out(nvml: FakeNvml, broken: str) -> None:
    nvml.broken = broken
    assert gpu_state("cuda:0") == {} and nvml.open == 0


def test_a_gpu_that_nvml_does_not_know_has_no_gauges(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="MIG-1"))
    assert gpu_state("cuda:0") == {} and nvml.open == 0


def test_without_the_library_there_are_no_gauges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu_state("cuda:0") == {}


async def test_metrics_include_the_gauges(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    executor: CpuExecutor = make_executor()
    monkeypatch.setattr(executor, "gauges", lambda: gpu_state("cuda:0"))
    try:
        async with serving_plane(executor) as plane:
            body = Metrics(plane.engine).render()[0].decode()
        for name, value in GAUGES.items():
            line = next(line for line in body.splitlines() if line.startswith(f"strait_gpu_{name} "))
            assert float(line.split()[1]) == pytest.approx(value)
    finally:
        executor.close()
