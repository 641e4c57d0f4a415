"""What the CUDA executor must do on any device, real or not; `test_cuda_executor` and `test_cuda_gpu` run it on theirs."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from agents.policies.registry import make_policy
from envs.profiles.profile import Profile, synthetic_profile
from serving.engine.engine import Engine
from serving.executors.base import Batch, BatchResult
from serving.executors.cuda import CudaExecutor
from serving.models.load import load_model
from serving.models.served import ModelSpec, ServedModel

GIVEN = np.arange(4, dtype=np.float32)


class Greedy(nn.Module):
    """Doubles; more than one input of 667 is more than the device's memory holds."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 1 and float(x.flatten()[0]) == 667:
            if x.is_cuda:
                torch.empty(1 << 48, dtype=torch.uint8, device=x.device)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 256.00 TiB.\nSome advice.")
        return 2 * x


class Long(nn.Module):
    """Computes for tens of ms, and doubles."""

    def forward(self, x: Tensor) -> Tensor:
        square = torch.zeros(4096, 4096, device=x.device)
        for _ in range(20 if x.is_cuda else 0):
            square = square @ square
        return 2 * x + square[0, :4]


class Counting(nn.Module):
    """Of whole numbers: doubles, in another type."""

    def forward(self, x: Tensor) -> Tensor:
        return (2 * x).to(torch.int32)


def toy(name: str) -> ServedModel:
    """A model of `toy_models`, launched operation by operation."""
    return load_model(ModelSpec(name, f"toy_models:{name}", (4,), "float32", compiled=False))


def toy_profile(*names: str) -> Profile:
    """Told latencies of about 1 ms."""
    made = synthetic_profile(len(names))
    return replace(made, models=names, solo_ms=np.ones_like(made.solo_ms) * np.array(made.batch_sizes) ** 0.5)


class Results:
    """Collects results and hands them out."""

    def __init__(self) -> None:
        self.all: list[BatchResult] = []
        self._arrived = threading.Semaphore(0)

    def __call__(self, result: BatchResult) -> None:
        self.all.append(result)
        self._arrived.release()

    def wait(self, count: int = 1) -> BatchResult:
        for _ in range(count):
            assert self._arrived.acquire(timeout=60.0), "no result"
        return self.all[-1]


def run(
    executor: CudaExecutor, model: str, inputs: list[np.ndarray], priority: int = 0, stream: int = 0
) -> BatchResult:
    """Run one batch alone."""
    results = Results()
    executor.on_result = results
    executor.submit(stream, Batch(7, model, priority, [(one,) for one in inputs]))
    result = results.wait()
    if result.outputs is not None:
        result.outputs = [outputs[0] for outputs in result.outputs]  # type: ignore[misc]
    return result


Make = Callable[..., CudaExecutor]


class Behaviours:
    """Each test asks `make` for an executor, which is closed after it."""

    def test_outputs_are_the_models_and_phases_never_decrease(self, make: Make) -> None:
        executor = make(2)
        executor.load(toy("wide"))
        module = executor.models["wide"].module
        executor.warm_up("wide", [1, 4])
        rng = np.random.default_rng(0)
        for size in (1, 4, 3, 8, 1, 4):
            inputs = [rng.standard_normal(4).astype(np.float32) for _ in range(size)]
            before = time.perf_counter() * 1e3
            result = run(executor, "wide", inputs, priority=size % 2, stream=size % 2)
            after = time.perf_counter() * 1e3
            assert result.error is None and result.outputs is not None
            with torch.inference_mode():
                expected = module(torch.from_numpy(np.stack(inputs))).numpy()
            np.testing.assert_allclose(np.stack(result.outputs), expected, rtol=1e-3, atol=1e-3)
            times = list(result.phases)
            assert times == sorted(times)
            assert before <= times[0] and times[-1] <= after

    def test_results_do_not_change_when_the_next_batch_runs(self, make: Make) -> None:
        executor = make(1)
        executor.load(toy("double"))
        executor.warm_up("double", [1])
        first = run(executor, "double", [GIVEN])
        run(executor, "double", [GIVEN + 1])
        np.testing.assert_array_equal(first.outputs, [2 * GIVEN])

    def test_inputs_and_outputs_of_other_types_are_converted(self, make: Make) -> None:
        executor = make(1)
        executor.load(load_model(ModelSpec("counting", "cuda_behaviours:Counting", (2, 3), "int64", compiled=False)))
        executor.warm_up("counting", [2])
        inputs = [np.full((2, 3), n, np.int32) for n in (1, 2)]  # a narrower type is widened
        result = run(executor, "counting", inputs)
        assert result.outputs is not None and result.outputs[0].dtype == np.int32
        np.testing.assert_array_equal(result.outputs, 2 * np.stack(inputs))
        wrong = run(executor, "counting", [np.ones((2, 3), np.float32)] * 2)
        assert wrong.error is not None and "float32" in wrong.error
        wrong = run(executor, "counting", [np.ones((3, 2), np.int64)] * 2)
        assert wrong.error is not None and "(3, 2)" in wrong.error

    def test_a_models_error_ends_its_batch_and_not_its_stream(self, make: Make) -> None:
        executor = make(1)
        executor.load(toy("faulty"))
        executor.warm_up("faulty", [1, 2])
        bad = run(executor, "faulty", [GIVEN, np.full(4, 666, np.float32)])
        assert bad.error is not None and "this input is cursed" in bad.error and bad.outputs is None
        dead = run(executor, "faulty", [np.full(4, 668, np.float32)])
        assert dead.error is not None and "SystemExit" in dead.error
        good = run(executor, "faulty", [GIVEN, GIVEN])
        np.testing.assert_array_equal(good.outputs, [2 * GIVEN] * 2)

    def test_out_of_memory_is_reported_in_one_line_and_a_smaller_batch_fits(self, make: Make) -> None:
        executor = make(1)
        executor.load(load_model(ModelSpec("greedy", "cuda_behaviours:Greedy", (4,), "float32", compiled=False)))
        greedy = np.full(4, 667, np.float32)
        result = run(executor, "greedy", [greedy] * 2)
        assert result.error is not None and "\n" not in result.error
        assert "out of memory" in result.error
        np.testing.assert_array_equal(run(executor, "greedy", [greedy]).outputs, [2 * greedy])

    def test_a_model_that_cannot_be_recorded_still_runs(self, make: Make, caplog: Any) -> None:
        executor = make(2)
        executor.load(load_model(ModelSpec("waiting", "cuda_behaviours:Waiting", (4,), "float32", compiled=False)))
        executor.load(toy("double"))
        for name in ("waiting", "double"):
            executor.warm_up(name, [1, 2])
            np.testing.assert_array_equal(run(executor, name, [GIVEN]).outputs, [2 * GIVEN])
        assert caplog.text.count("model 'waiting' runs without CUDA graphs") == 1
        assert "'double' runs without" not in caplog.text

    def test_unloading_a_model_leaves_the_graphs_of_others_as_they_were(self, make: Make) -> None:
        """Both were recorded on the same stream, where libraries may share a workspace between them."""
        executor = make(1)
        for name in ("wide", "double"):
            executor.load(toy(name))
            executor.warm_up(name, [1, 4])
        rng = np.random.default_rng(0)
        inputs = [rng.standard_normal(4).astype(np.float32) for _ in range(4)]
        before = run(executor, "wide", inputs).outputs
        executor.unload("double")
        executor.load(toy("double"))  # takes memory that the first may have left
        executor.warm_up("double", [1, 4])
        for _ in range(20):
            np.testing.assert_allclose(run(executor, "wide", inputs).outputs, before, rtol=1e-3, atol=1e-3)
            np.testing.assert_array_equal(run(executor, "double", [GIVEN] * 4).outputs, [2 * GIVEN] * 4)

    def test_closing_drains_and_every_batch_has_one_result(self, make: Make) -> None:
        executor = make(3)
        executor.load(toy("double"))
        results = Results()
        left = Counter({0: 20, 1: 20, 2: 20})

        def on_result(result: BatchResult) -> None:
            if left[result.stream] > 0:
                left[result.stream] -= 1
                executor.submit(result.stream, Batch(result.batch_id + 3, "double", result.batch_id % 2, [(GIVEN,)]))
            results(result)

        executor.on_result = on_result
        for stream in range(3):
            executor.submit(stream, Batch(stream, "double", stream % 2, [(GIVEN,)]))
        results.wait(63)
        executor.on_result = results
        for stream in range(3):
            executor.submit(stream, Batch(100 + stream, "double", 0, [(GIVEN,)]))
        executor.close()
        assert Counter(r.batch_id for r in results.all) == Counter([*range(63), 100, 101, 102])
        assert all(r.error is None for r in results.all)
        with pytest.raises(ValueError, match="closed"):
            executor.submit(0, Batch(1, "double", 0, [(GIVEN,)]))

    async def test_the_engine_serves_on_it(self, make: Make) -> None:
        executor = make(2)
        for name in ("double", "wide"):
            executor.load(toy(name))
        engine = Engine(executor, toy_profile("double", "wide"), make_policy("strait"))
        await engine.start()
        try:
            requests = []
            for i in range(60):
                requests += engine.offer(("double", "wide")[i % 3 == 0], i % 2, 1e5, [GIVEN + i])
            outcomes = [await request.future for request in requests]
        finally:
            await engine.stop(10.0)
        assert {o.outcome for o in outcomes} == {"met"}
        for i, outcome in enumerate(outcomes):
            if i % 3:
                np.testing.assert_array_equal(outcome.output, 2 * (GIVEN + i))
        assert engine.offered.sum() == engine.ended.sum() == 60


class Waiting(nn.Module):
    """Doubles, after it waited for the device, which no graph can record."""

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda:
            torch.cuda.current_stream().synchronize()
        else:
            import fake_cuda

            fake_cuda.wait_for_device()
        return 2 * x
