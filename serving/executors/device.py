"""What device is there, and how fast it is at its best: measured, not looked up."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import psutil
import torch

from traces.errors import InputError
from traces.machine import DeviceInfo, cpu_name

_MATRIX = 512  # 3 MB for one product's matrices: in the cache of a core, so that arithmetic is the limit
_COPY_BYTES = 64 << 20  # beyond the caches
_MEASURE_S = 0.15


def resolve_device(device: str) -> str:
    """Return "cpu" or "cuda:N" for "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        InputError: not such a word, or no such device here.
    """
    if device == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        return "cpu"
    kind, _, number = device.partition(":")
    if kind != "cuda" or not (number.isdecimal() or number == "" and ":" not in device):
        raise InputError(f"device {device!r} is not one of auto, cpu, cuda, cuda:N, sim:PROFILE")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(number or 0) >= count:
        raise InputError(f"device {device!r} is not here: {count} CUDA devices; use cpu or auto")
    return f"cuda:{int(number or 0)}"


@cache
def probe_device(device: str) -> DeviceInfo:
    """Describe a device and measure its peaks, once in a process (under a second, on an idle machine).

    Args:
        device: "cpu" or "cuda:N".

    Returns:
        Its description. `cores` are the CPU's usable cores, or the GPU's multiprocessors. `peak_gflops` is
        single-precision matrix multiplication on all of them (on a CPU one thread each; on a GPU without TF32, as torch
        has it by default); `peak_gbps` is memory copied on all of them, reads and writes counted, in 1e9 bytes per second.
    """
    if device != "cpu":
        return _probe_cuda(torch.device(device))
    cores = usable_cores()
    # Work by one intra-op thread on each core, as streams do it.
    gflops = sum(_on_threads(cores, _matrix_products)) * 2 * _MATRIX**3 / 1e9
    gbps = sum(_on_threads(cores, _memory_copies)) * 2 * _COPY_BYTES / 1e9
    return DeviceInfo("cpu", cpu_name(), cores, memory_bytes(), round(gflops, 1), round(gbps, 2), torch.__version__)


def usable_cores() -> int:
    """Return the cores that this process may use: its affinity, and its control group's quota if that is less."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        cores = os.cpu_count() or 1
    for quota_file, period_file in (
        ("/sys/fs/cgroup/cpu.max", None),
        ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
    ):
        words = _words(quota_file) + (_words(period_file) if period_file else [])
        if len(words) == 2 and words[0].isdecimal() and int(words[1]) > 0:
            cores = min(cores, max(1, int(words[0]) // int(words[1])))
    return cores


def memory_bytes() -> int:
    """Return the memory that this process may use: the machine's, or its control group's limit if that is less."""
    total = psutil.virtual_memory().total
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        words = _words(file)
        if words and words[0].isdecimal():
            total = min(total, int(words[0]))
    return total


def gpu_state(device: str) -> dict[str, float]:
    """Read the gauges of a GPU ("cuda:N") by NVML.

    Returns:
        `utilisation` and `memory_utilisation` (0 to 1), `memory_used_bytes`, `memory_total_bytes`, `power_w`,
        `temperature_c`, `sm_clock_mhz`; empty where there is no NVIDIA driver or no such GPU.
    """
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no library, no driver, or no right to ask: the server does without
        return {}
    try:
        # By its name: NVML counts all GPUs of the machine, CUDA those that CUDA_VISIBLE_DEVICES shows.
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        rates, memory = pynvml.nvmlDeviceGetUtilizationRates(handle), pynvml.nvmlDeviceGetMemoryInfo(handle)
        return {
            "utilisation": rates.gpu / 100,
            "memory_utilisation": rates.memory / 100,
            "memory_used_bytes": float(memory.used),
            "memory_total_bytes": float(memory.total),
            "power_w": pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,
            "temperature_c": float(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)),
            "sm_clock_mhz": float(pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)),
        }
    except pynvml.NVMLError:
        return {}
    finally:
        pynvml.nvmlShutdown()


def _words(path: str) -> list[str]:
    try:
        return Path(path).read_text().split()
    except OSError:
        return []


def _on_threads(count: int, measure: Callable[[], float]) -> list[float]:
    rates = [0.0] * count
    barrier = threading.Barrier(count)

    def run(place: int) -> None:
        torch.set_num_threads(1)
        barrier.wait()
        rates[place] = measure()

    threads = [threading.Thread(target=run, args=(place,)) for place in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return rates


def _matrix_products() -> float:
    left, right = torch.rand(_MATRIX, _MATRIX), torch.rand(_MATRIX, _MATRIX)
    product = torch.empty(_MATRIX, _MATRIX)
    return _per_second(lambda: torch.mm(left, right, out=product))


def _memory_copies() -> float:
    source = np.ones(_COPY_BYTES, np.uint8)
    target = np.zeros_like(source)
    return _per_second(lambda: np.copyto(target, source))


def _per_second(work: Callable[[], object], wait: Callable[[], object] = lambda: None) -> float:
    """Repeat for a while and return the rate of the best third, which others' work on the machine disturbed least."""
    work()
    wait()
    times_s: list[float] = []
    end_s = time.perf_counter() + _MEASURE_S
    while time.perf_counter() < end_s or len(times_s) < 5:
        start_s = time.perf_counter()
        work()
        wait()
        times_s.append(time.perf_counter() - start_s)
    best = sorted(times_s)[: max(1, len(times_s) // 3)]
    return len(best) / sum(best)


def _probe_cuda(device: torch.device) -> DeviceInfo:
    properties = torch.cuda.get_device_properties(device)
    side = 4096
    left, right = (torch.rand(side, side, device=device) for _ in range(2))
    source = torch.zeros(4 * _COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)

    copies = 8  # between two waits, each of which takes as long as a tenth of a copy

    def copy() -> None:
        for _ in range(copies):
            target.copy_(source)

    def wait() -> None:
        torch.cuda.synchronize(device)

    gflops = _per_second(lambda: torch.mm(left, right), wait) * 2 * side**3 / 1e9
    gbps = _per_second(copy, wait) * copies * 2 * source.nbytes / 1e9
    cores, memory = properties.multi_processor_count, properties.total_memory
    return DeviceInfo("cuda", properties.name, cores, memory, round(gflops, 1), round(gbps, 2), torch.__version__)
