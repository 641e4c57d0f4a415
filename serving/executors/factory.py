"""The executor of a device, by the device's name."""

from __future__ import annotations

from serving.executors.base import OnResult
from serving.executors.cpu import CpuExecutor
from serving.executors.cuda import CudaExecutor
from serving.executors.device import resolve_device
from serving.executors.executor import Executor
from serving.executors.sim import SimulatedExecutor, simulated_profile


def make_executor(
    device: str, streams: int, on_result: OnResult = lambda result: None, graphs: bool = True
) -> Executor:
    """Make the executor of a device.

    Args:
        device: "cpu", "cuda", "cuda:N", "auto" (CUDA where there is one, else the CPU), or "sim:PROFILE" or
            "sim:PROFILE:SLOWNESS", which takes a profile's time and no CPU.
        streams: how many batches may be in flight.
        on_result: called once for every submitted batch, on a worker thread; by default results are dropped.
        graphs: whether a CUDA device records its batches as graphs.

    Raises:
        InputError: no such device here.
    """
    simulated = simulated_profile(device)
    if simulated is not None:
        return SimulatedExecutor(streams, on_result, *simulated)
    chosen = resolve_device(device)
    if chosen == "cpu":
        return CpuExecutor(streams, on_result)
    return CudaExecutor(streams, on_result, device=chosen, graphs=graphs)
