"""The CUDA executor, the profiler and the engine on a real GPU; skipped where there is none."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from cuda_behaviours import GIVEN, Behaviours, Make, Results, run, toy

from agents.policies.registry import make_policy
from envs.profiles.fit import fit
from serving.engine.engine import Engine
from serving.executors.base import Batch
from serving.executors.cuda import CudaExecutor
from serving.executors.device import probe_device, resolve_device
from serving.executors.factory import make_executor
from serving.models.builtin.registry import BUILTIN
from serving.models.load import builtin_spec, load_model
from serving.models.served import ModelSpec
from serving.profiler import ProfilerConfig, profile_device
from serving.replay.replay import make_inputs, replay
from traces.arrivals import poisson
from traces.measurements import PHASES
from traces.workload import WorkloadConfig, make_workload

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[CudaExecutor] = []

    def build(streams: int, graphs: bool = True) -> CudaExecutor:
        made.append(CudaExecutor(streams, graphs=graphs))
        return made[-1]

    yield build
    for executor in made:
        executor.close()


class TestOnGpu(Behaviours):
    """All behaviours, on the device."""


def test_the_device_is_found_and_measured() -> None:
    assert resolve_device("auto") == "cuda:0"
    device = probe_device("cuda:0")
    assert device.kind == "cuda" and device.cores > 1
    assert device.peak_gflops > 100 and device.peak_gbps > 10
    assert device.memory_bytes == torch.cuda.get_device_properties(0).total_memory


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("name", BUILTIN)
def test_built_in_models_answer_as_on_the_cpu(
    name: str, graphs: bool, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    executor = make(1, graphs)
    model = load_model(builtin_spec(name))
    executor.load(model)
    executor.warm_up(name, [1, 4])
    assert "runs uncompiled" not in caplog.text
    assert "without CUDA graphs" not in caplog.text
    rng = np.random.default_rng(1)
    for size in (1, 3, 4):
        inputs = [model.example(rng)[0] for _ in range(size)]
        outputs = run(executor, name, inputs, priority=size % 2).outputs
        with torch.inference_mode():
            expected = model.module(torch.from_numpy(np.stack(inputs))).numpy()
        assert outputs is not None
        np.testing.assert_allclose(np.stack(outputs), expected, rtol=2e-2, atol=2e-2)  # TF32 convolutions


def test_streams_run_side_by_side_and_each_gets_its_own_outputs(make: Make) -> None:
    executor = make(4)
    executor.load(toy("wide"))
    executor.warm_up("wide", [1, 2])
    module = executor.models["wide"].module
    results = Results()
    executor.on_result = results
    rng = np.random.default_rng(0)
    given: dict[int, np.ndarray] = {}
    for number in range(80):
        given[number] = rng.standard_normal((1 + number % 3, 4)).astype(np.float32)
        while sum(result.stream == number % 4 for result in results.all) < number // 4:
            time.sleep(1e-4)
        executor.submit(number % 4, Batch(number, "wide", number % 2, [(one,) for one in given[number]]))
    results.wait(80)
    assert sorted(result.batch_id for result in results.all) == list(range(80))
    for result in results.all:
        assert result.error is None and result.outputs is not None
        with torch.inference_mode():
            expected = module(torch.from_numpy(given[result.batch_id])).numpy()
        np.testing.assert_allclose(np.stack(result.outputs), expected, rtol=1e-2, atol=1e-2)


def test_waiting_for_the_device_does_not_hold_pythons_lock(make: Make) -> None:
    executor = make(1)
    executor.load(load_model(ModelSpec("long", "cuda_behaviours:Long", (4,), "float32", compiled=False)))
    executor.warm_up("long", [1])
    results = Results()
    executor.on_result = results
    counted = 0
    executor.submit(0, Batch(0, "long", 0, [(GIVEN,)]))
    while not results.all:
        counted += 1
    result = results.wait()
    assert result.phases.exec_end_ms - result.phases.exec_start_ms > 10 * (
        result.phases.h2d_end_ms - result.phases.h2d_start_ms
    )
    assert counted > 1000, "this thread ran meanwhile"


def test_a_busy_device_shows_in_the_phases(make: Make) -> None:
    executor = make(2)
    executor.load(load_model(ModelSpec("long", "cuda_behaviours:Long", (4,), "float32", compiled=False)))
    executor.warm_up("long", [1])
    first = run(executor, "long", [GIVEN])
    results = Results()
    executor.on_result = results
    for stream in range(2):
        executor.submit(stream, Batch(stream, "long", 0, [(GIVEN,)]))
    results.wait(2)
    alone, *both = (one.phases.exec_end_ms - one.phases.exec_start_ms for one in (first, *results.all))
    assert max(both) > 1.3 * alone


def test_unloading_gives_memory_back(make: Make) -> None:
    executor = make(2)
    executor.load(toy("double"))

    def allocated_after_a_cycle() -> int:
        executor.load(toy("wide"))
        executor.warm_up("wide", [1, 8])
        executor.unload("wide")
        executor.warm_up("double", [1])  # behind the unloading on every stream
        gc.collect()
        return torch.cuda.memory_allocated()

    first = allocated_after_a_cycle()  # cuBLAS keeps a workspace for each CUDA stream from now on
    assert allocated_after_a_cycle() < first + (1 << 20), "the model has 16 MiB of weights"


def test_a_program_exported_on_the_cpu_runs_here(make: Make, tmp_path: Path) -> None:
    class Counted(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.arange(4, device=x.device)

    dynamic = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(Counted(), (torch.randn(2, 4),), dynamic_shapes=dynamic)
    torch.export.save(program, tmp_path / "counted.pt2")
    executor = make(1)
    executor.load(load_model(ModelSpec("counted", str(tmp_path / "counted.pt2"), (4,))))
    np.testing.assert_allclose(run(executor, "counted", [GIVEN] * 2).outputs, [2 * GIVEN] * 2)


def test_a_model_may_be_loaded_while_others_run(make: Make) -> None:
    executor = make(2)
    executor.load(toy("wide"))
    executor.warm_up("wide", [1, 4])
    stop = threading.Event()
    failures: list[str] = []

    def on_result(result: object) -> None:
        error = getattr(result, "error", None)
        if error is not None:
            failures.append(error)
        if not stop.is_set():
            executor.submit(result.stream, Batch(0, "wide", 1, [(GIVEN,)] * 4))  # type: ignore[attr-defined]

    executor.on_result = on_result
    executor.submit(0, Batch(0, "wide", 1, [(GIVEN,)] * 4))
    try:
        executor.load(load_model(builtin_spec("resnet")))
        executor.warm_up("resnet", [1, 2])
    finally:
        stop.set()
    assert not failures


@pytest.mark.slow
async def test_profile_then_fit_then_serve(tmp_path: Path) -> None:
    campaign = ProfilerConfig(
        out=str(tmp_path), device="cuda", streams=3, models=["mobilenet", "bert"], batch_sizes=[1, 2, 4], batches=240
    )
    measured = profile_device(campaign, "profiler", progress=False)
    assert measured.machine.device.kind == "cuda"
    assert len(measured.batches) >= 240
    phases = measured.batches[list(PHASES)].to_numpy()
    assert (np.diff(phases, axis=1) >= 0).all()
    profile = fit(measured, "here")
    executor = make_executor("cuda", 3)
    try:
        for name in profile.models:
            executor.load(load_model(builtin_spec(name)))
        engine = Engine(executor, profile, make_policy("strait"))
        await engine.start()
        rng = np.random.default_rng(0)
        arrivals = poisson(200.0, 3000.0, rng)
        config = WorkloadConfig(min_deadline_ms=50.0)
        workload = make_workload(arrivals, profile.models, profile.solo_latency_ms, config, rng)
        table = await replay(engine, workload, make_inputs(executor))
        await engine.stop(10.0)
    finally:
        executor.close()
    assert len(table) == len(workload.arrival_ms)
    assert (table["outcome"] == "met").mean() > 0.5
