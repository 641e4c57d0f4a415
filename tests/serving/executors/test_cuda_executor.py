"""The CUDA executor on a device that is none, which checks that it keeps CUDA's rules; `test_cuda_gpu` has the real one."""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_cuda
import numpy as np
import pytest
import torch
from cuda_behaviours import GIVEN, Behaviours, Make, run, toy
from fake_cuda import FakeCuda
from torch import Tensor, nn

from serving.executors.base import Batch, now_ms
from serving.executors.cuda import CudaExecutor, DeviceClock
from serving.executors.cuda_api import TorchCuda, plain_error
from serving.models.load import load_model
from serving.models.served import ModelSpec


@pytest.fixture
def cuda() -> FakeCuda:
    return FakeCuda()


@pytest.fixture
def make(cuda: FakeCuda) -> Iterator[Make]:
    made: list[CudaExecutor] = []

    def build(streams: int, graphs: bool = True) -> CudaExecutor:
        made.append(CudaExecutor(streams, graphs=graphs, api=cuda))
        return made[-1]

    yield build
    for executor in made:
        executor.close()


class TestOnFake(Behaviours):
    """All behaviours, with CUDA's rules checked."""


def test_a_batch_runs_on_the_stream_of_its_priority(make: Make, cuda: FakeCuda) -> None:
    executor = make(1)
    executor.load(toy("double"))
    for priority in (0, 1, 1, 0):
        run(executor, "double", [GIVEN], priority)
    assert cuda.ran == [(0, 1, False), (1, 1, False), (1, 1, False), (0, 1, False)]


def test_graphs_are_replayed_for_the_sizes_that_were_warmed_up_only(make: Make, cuda: FakeCuda) -> None:
    executor = make(2)
    executor.load(toy("double"))
    executor.warm_up("double", [1, 4])
    executor.warm_up("double", [4, 1])  # records nothing anew
    assert sorted(cuda.captures) == sorted([(p, n) for p in (0, 1) for n in (1, 4)] * 2), "each stream, each priority"
    cuda.ran.clear()
    for size, priority in ((1, 0), (2, 0), (4, 1), (4, 0), (9, 1), (1, 1)):
        inputs = [GIVEN + i for i in range(size)]
        np.testing.assert_array_equal(run(executor, "double", inputs, priority).outputs, 2 * np.stack(inputs))
    replayed = {(priority, size): replay for priority, size, replay in cuda.ran}
    assert replayed == {(0, 1): True, (0, 2): False, (1, 4): True, (0, 4): True, (1, 9): False, (1, 1): True}
    assert len(cuda.captures) == 8, "none while it serves"


def test_without_graphs_nothing_is_recorded(make: Make, cuda: FakeCuda) -> None:
    executor = make(1, graphs=False)
    executor.load(toy("double"))
    executor.warm_up("double", [1, 2])
    assert {priority for priority, *_ in cuda.ran} == {0, 1}, "both CUDA streams are warm all the same"
    run(executor, "double", [GIVEN])
    assert not cuda.captures and not any(replayed for *_, replayed in cuda.ran)


def test_a_graph_that_answers_differently_is_not_used(
    make: Make, cuda: FakeCuda, caplog: pytest.LogCaptureFixture
) -> None:
    executor = make(1)
    executor.load(load_model(ModelSpec("baked", "toy_models:Baked", (4,), "float32", compiled=False)))
    executor.warm_up("baked", [1])
    np.testing.assert_array_equal(run(executor, "baked", [GIVEN]).outputs, [2 * GIVEN])
    assert "model 'baked' runs without CUDA graphs: the recorded graph answers differently" in caplog.text
    assert not cuda.ran[-1][2]


def test_after_a_failed_capture_the_model_is_not_tried_again(make: Make, cuda: FakeCuda) -> None:
    executor = make(2)
    executor.load(load_model(ModelSpec("waiting", "cuda_behaviours:Waiting", (4,), "float32", compiled=False)))
    executor.warm_up("waiting", [1, 2])
    executor.unload("waiting")
    executor.load(toy("double"))
    executor.warm_up("double", [1])
    assert len(cuda.captures) == 4, "the other model is"


def test_buffers_are_reused_and_grow(make: Make, cuda: FakeCuda) -> None:
    executor = make(1, graphs=False)
    executor.load(toy("double"))
    for size, allocations in ((2, 4), (1, 4), (2, 4), (5, 7), (4, 7)):
        run(executor, "double", [GIVEN] * size)
        assert len(cuda.allocations) == allocations, "pinned inputs, inputs, pinned outputs; once the pool"
    gc.collect()
    assert cuda.alive() == 4


def test_unloading_frees_buffers_and_graphs(make: Make, cuda: FakeCuda) -> None:
    executor = make(2)
    for name in ("double", "wide"):
        executor.load(toy(name))
        executor.warm_up(name, [1, 2])
    held = cuda.alive()
    executor.unload("wide")
    executor.warm_up("double", [1])  # behind the unloading on every stream
    gc.collect()
    assert 0 < cuda.alive() <= held / 2
    executor.close()
    gc.collect()
    assert cuda.alive() == 0


def test_memory_that_torch_keeps_is_given_back_when_it_runs_out(make: Make, cuda: FakeCuda) -> None:
    executor = make(1)
    executor.load(load_model(ModelSpec("greedy", "cuda_behaviours:Greedy", (4,), "float32", compiled=False)))
    result = run(executor, "greedy", [np.full(4, 667, np.float32)] * 2)
    assert result.error == "MemoryError: CUDA out of memory. Tried to allocate 256.00 TiB."
    assert cuda.emptied == 1
    run(executor, "greedy", [np.ones(4, np.float64)])
    assert cuda.emptied == 1


def test_a_model_that_fails_in_warm_up_is_reported(make: Make) -> None:
    executor = make(1)
    executor.load(toy("faulty"))
    executor.models["faulty"].module.forward = None  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="fails on a batch of 1"):
        executor.warm_up("faulty", [1])


def test_work_in_flight_is_waited_for_after_an_error(make: Make, cuda: FakeCuda) -> None:
    executor = make(1)
    executor.load(toy("faulty"))
    # The copy of the cursed input is in flight when the model raises: overwriting its source would fail in the fake.
    assert run(executor, "faulty", [np.full(4, 666, np.float32)]).error is not None
    np.testing.assert_array_equal(run(executor, "faulty", [GIVEN]).outputs, [2 * GIVEN])


def test_the_executor_refuses_what_every_executor_refuses(make: Make) -> None:
    executor = make(1)
    executor.load(toy("double"))
    for stream, batch in (
        (1, Batch(0, "double", 0, [(GIVEN,)])),
        (0, Batch(0, "double", 0, [])),
        (0, Batch(0, "no", 0, [(GIVEN,)])),
    ):
        with pytest.raises(ValueError):
            executor.submit(stream, batch)


class Mark:
    """An event at a given time of the device."""

    def __init__(self, ms: float) -> None:
        self.ms = ms


class ScriptedCuda(FakeCuda):
    """Its anchor knows the times of marks."""

    def make_event(self, blocking: bool) -> fake_cuda.FakeEvent:
        event = super().make_event(blocking)
        event.elapsed_time = lambda end: end.ms - event.ms if isinstance(end, Mark) else math.nan  # type: ignore
        return event


def test_times_of_the_device_are_put_on_the_hosts_clock_and_kept_in_order() -> None:
    api = ScriptedCuda()
    clock = DeviceClock(api, api.make_stream(0))
    clock.keep()
    now = now_ms()
    at = now - fake_cuda.EPOCH_MS  # the device's clock
    times = clock.times([Mark(at + 1), Mark(at + 2), Mark(at + 4)], now, now + 10)  # type: ignore[list-item]
    np.testing.assert_allclose(np.array(times) - now, [1, 2, 4], atol=0.5)
    times = clock.times([Mark(at - 9), Mark(at + 3), Mark(at + 2), Mark(at + 99)], now, now + 10)  # type: ignore[list-item]
    np.testing.assert_allclose(np.array(times) - now, [0, 3, 3, 10], atol=0.5)
    assert times == sorted(times) and times[0] == now and times[-1] == now + 10


class Graph:
    """Stands in for torch.cuda.CUDAGraph: notes what is asked of it, in order."""

    calls: list[str]

    def __init__(self) -> None:
        Graph.calls = []

    def capture_begin(self, pool: object, capture_error_mode: str) -> None:
        Graph.calls.append(f"begin {capture_error_mode}")

    def capture_end(self) -> None:
        Graph.calls.append("end")
        if "broken" in Graph.calls:
            raise RuntimeError("operation failed due to a previous error during capture")

    def replay(self) -> None:
        Graph.calls.append("replay")


def test_torchs_captures_are_ended_whatever_happens_and_report_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    stream: Any = SimpleNamespace(synchronize=lambda: None)
    api = TorchCuda("cuda:0")
    graph = api.capture(stream, lambda: (torch.ones(2),), "pool")
    graph.replay()
    assert Graph.calls == ["begin thread_local", "end", "replay"] and len(graph.outputs[0]) == 2

    def fault() -> tuple[Tensor, ...]:
        Graph.calls.append("broken")
        raise ValueError("it waits")

    with pytest.raises(ValueError, match="it waits"):
        api.capture(stream, fault, "pool")
    assert Graph.calls == ["begin thread_local", "broken", "end"]
    assert api.capture(stream, lambda: (torch.ones(2),), "pool").outputs, "the next one is not held up"


class Stream:
    """Stands in for torch.cuda.Stream."""

    def __init__(self, device: torch.device, priority: int) -> None:
        self.priority = priority

    @staticmethod
    def priority_range() -> tuple[int, int]:
        return 0, -5


def test_torchs_streams_are_at_the_ends_of_the_range(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    api = TorchCuda("cuda:0")
    assert [api.make_stream(priority).priority for priority in (0, 1)] == [-5, 0]


def test_an_exported_program_is_moved_with_the_tensors_that_it_makes(tmp_path: Path) -> None:
    class Counted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.arange(4, device=x.device)

    dynamic = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(Counted(), (torch.randn(2, 4),), dynamic_shapes=dynamic)
    torch.export.save(program, tmp_path / "counted.pt2")
    model = load_model(ModelSpec("counted", str(tmp_path / "counted.pt2"), (4,), compiled=False))
    assert model.build("meta")(torch.empty(3, 4, device="meta")).shape == (3, 4)


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried\nadvice"), MemoryError, "CUDA out of memory. Tried"),
        (RuntimeError("In TorchScript:\nRuntimeError: CUDA out of memory. Tried"), MemoryError, "CUDA out of memory"),
        (RuntimeError("CUDA error: out of memory\nCompile with X"), MemoryError, "CUDA error: out of memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when"), MemoryError, "out of memory: CUDA error: CUBLAS"),
        (MemoryError(), MemoryError, "out of memory: MemoryError"),
        (RuntimeError("CUDA error: an illegal access\nCompile with X"), RuntimeError, "CUDA error: an illegal access"),
        (ValueError("not of CUDA\nat all"), ValueError, "not of CUDA\nat all"),
    ],
)
def test_errors_are_reported_by_the_line_that_matters(error: Exception, kind: type[Exception], text: str) -> None:
    plain = plain_error(error)
    assert type(plain) is kind and text in str(plain)
