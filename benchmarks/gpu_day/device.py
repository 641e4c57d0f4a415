"""What the device is, and how fast copies to and from it and launches on it are."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from benchmarks.gpu_day.install import names
from benchmarks.gpu_day.step import Context
from serving.executors.device import gpu_state, memory_bytes, probe_device, usable_cores
from traces.machine import cpu_name

COPY_BYTES = (1 << 12, 1 << 18, 1 << 22, 1 << 26)
KERNELS = 100  # of one recorded graph, and launched between two waits
WIDE = 4096  # side of the matrices whose product fills the device


def facts(context: Context) -> dict[str, Any]:
    """The machine, its device with measured peaks, and the versions of packages."""
    found: dict[str, Any] = {
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "memory_bytes": memory_bytes(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "device": asdict(probe_device(context.device)),
    }
    if context.device != "cpu":
        properties = torch.cuda.get_device_properties(context.device)
        found["compute_capability"] = [properties.major, properties.minor]
        found["l2_cache_bytes"] = properties.L2_cache_size
        found["priority_range"] = list(torch.cuda.Stream.priority_range())  # type: ignore[call-arg]
        found["state"] = gpu_state(context.device)
        found["link"] = link(context.device)
    context.save("packages.json", packages())
    return found


def link(device: str) -> dict[str, Any]:
    """Driver, PCIe link and clocks, by NVML; what it does not say is left out."""
    found: dict[str, Any] = {}
    with suppress(Exception):  # no library, no right to ask, or a question that this device does not answer
        import pynvml

        pynvml.nvmlInit()
        found["driver"] = str(pynvml.nvmlSystemGetDriverVersion())
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        for name, ask in (
            ("pcie_generation", pynvml.nvmlDeviceGetCurrPcieLinkGeneration),
            ("pcie_width", pynvml.nvmlDeviceGetCurrPcieLinkWidth),
            ("power_limit_mw", pynvml.nvmlDeviceGetEnforcedPowerLimit),
        ):
            with suppress(pynvml.NVMLError):
                found[name] = int(ask(handle))
        for name, clock in (("sm", pynvml.NVML_CLOCK_SM), ("memory", pynvml.NVML_CLOCK_MEM)):
            with suppress(pynvml.NVMLError):
                found[f"max_{name}_clock_mhz"] = int(pynvml.nvmlDeviceGetMaxClockInfo(handle, clock))
    return found


def packages() -> dict[str, str]:
    """Versions of what the project needs, by name; "missing" where it is not installed."""
    found = {}
    for name in (*names("provided.txt"), *names("wheels.txt")):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


class Timer:
    """Times work on a device.

    Args:
        device: cpu or cuda:N.
        seconds: that one measurement takes.
    """

    def __init__(self, device: str, seconds: float) -> None:
        self.device, self.seconds = device, seconds

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device != "cpu":
            torch.cuda.synchronize(self.device)

    def per_call_s(self, work: Callable[[], object], calls: int = 8) -> float:
        """Median seconds of a call, over rounds of so many between two waits."""
        work()
        self.wait()
        rounds: list[float] = []
        end_s = time.perf_counter() + self.seconds
        while not rounds or time.perf_counter() < end_s:
            begin_s = time.perf_counter()
            for _ in range(calls):
                work()
            self.wait()
            rounds.append((time.perf_counter() - begin_s) / calls)
        return sorted(rounds)[len(rounds) // 2]


def transfers(context: Context) -> dict[str, Any]:
    """Copies in GB/s by bytes, direction and memory; launches and graphs in us per kernel; what a stream's priority does."""
    on_gpu = context.device != "cpu"
    measured = 2 * (5 if on_gpu else 2) * len(COPY_BYTES) + 6
    timer = Timer(context.device, 0.5 * context.left_s / measured)
    found: dict[str, Any] = {"copies_gbps": {}}
    for size in COPY_BYTES:
        found["copies_gbps"] |= copies(timer, size, on_gpu)
        context.save("transfers.json", found)
    found["launch_us"] = 1e6 * launch_s(timer)
    if on_gpu:
        found["graph_us"] = 1e6 * graph_s(timer)
        found["high_priority_ms"], found["low_priority_ms"] = (1e3 * beside_low_s(timer, p) for p in (0, 1))
    return found


def copies(timer: Timer, size: int, pinning: bool) -> dict[str, dict[str, float]]:
    """GB/s of copies of so many bytes, by direction: to the device, back, and both at once."""
    found: dict[str, dict[str, float]] = {}
    there, also_there = (torch.zeros(size, dtype=torch.uint8, device=timer.device) for _ in range(2))
    for memory in ("pinned", "pageable") if pinning else ("pageable",):
        here, also_here = (torch.zeros(size, dtype=torch.uint8, pin_memory=memory == "pinned") for _ in range(2))

        def to_device(source: torch.Tensor = here) -> None:
            there.copy_(source, non_blocking=True)

        def back(target: torch.Tensor = here) -> None:
            target.copy_(there, non_blocking=True)

        rates = {"to_device": size / timer.per_call_s(to_device), "back": size / timer.per_call_s(back)}
        if pinning:
            streams = [torch.cuda.Stream(timer.device) for _ in range(2)]

            def both(first: torch.Tensor = here, second: torch.Tensor = also_here, streams: list = streams) -> None:
                with torch.cuda.stream(streams[0]):
                    there.copy_(first, non_blocking=True)
                with torch.cuda.stream(streams[1]):
                    second.copy_(also_there, non_blocking=True)

            rates["both"] = 2 * size / timer.per_call_s(both)
        found[f"{memory}_{size}"] = {direction: rate / 1e9 for direction, rate in rates.items()}
    return found


def launch_s(timer: Timer) -> float:
    """Seconds per small kernel, launched one by one."""
    small = torch.zeros(16, device=timer.device)
    return timer.per_call_s(lambda: small.add_(1.0), KERNELS)


def graph_s(timer: Timer) -> float:
    """Seconds per small kernel, replayed in a graph of many."""
    small, graph = torch.zeros(16, device=timer.device), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(KERNELS):
            small.add_(1.0)
    return timer.per_call_s(graph.replay) / KERNELS


def beside_low_s(timer: Timer, priority: int) -> float:
    """Median seconds of a product on a stream of a priority (0 high, 1 low), beside a low one that is full of products."""
    lowest, highest = torch.cuda.Stream.priority_range()  # type: ignore[call-arg]
    mine, other = torch.cuda.Stream(priority=lowest if priority else highest), torch.cuda.Stream(priority=lowest)
    wide = torch.rand(WIDE, WIDE, device=timer.device, dtype=torch.float16)
    small = torch.rand(512, 512, device=timer.device, dtype=torch.float16)
    took_s: list[float] = []
    for _ in range(20):
        timer.wait()
        with torch.cuda.stream(other):
            for _ in range(20):
                torch.mm(wide, wide)
        begin_s = time.perf_counter()
        with torch.cuda.stream(mine):
            torch.mm(small, small)
        mine.synchronize()
        took_s.append(time.perf_counter() - begin_s)
    timer.wait()
    return sorted(took_s)[len(took_s) // 2]
