"""Models of many tensors and any size on the CUDA executor: the same answers as on the CPU, whatever device is there."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import tensor_models
import torch
from cuda_behaviours import Results
from fake_cuda import FakeCuda

from serving.executors.base import Batch
from serving.executors.cpu import CpuExecutor
from serving.executors.cuda import CudaExecutor
from serving.executors.executor import Executor
from serving.models.load import load_buckets
from serving.models.served import ServedModel
from serving.models.tensors import Item

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
CUDA = pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])


@pytest.fixture(scope="module")
def models() -> dict[str, ServedModel]:
    return {model.name: model for spec in tensor_models.MODELS.values() for model in load_buckets(spec)}


@pytest.fixture(params=["fake", CUDA])
def executor(request: pytest.FixtureRequest) -> Iterator[CudaExecutor]:
    made = CudaExecutor(1, api=FakeCuda()) if request.param == "fake" else CudaExecutor(1)  # type: ignore[arg-type]
    yield made
    made.close()


def answers(executor: Executor, model: ServedModel, items: list[Item]) -> list[Item]:
    results = Results()
    executor.on_result = results
    executor.submit(0, Batch(0, model.name, 0, items))
    result = results.wait()
    assert result.error is None and result.outputs is not None, result.error
    return result.outputs


def items_of(model: ServedModel, count: int) -> list[Item]:
    """Items of different sizes within the bucket."""
    rng = np.random.default_rng(count)
    sizes = [
        None if model.bucket is None else int(rng.integers(model.bucket * 2 // 3, model.bucket + 1))
        for _ in range(count)
    ]
    return [tuple(spec.sized(size).example(rng) for spec in model.inputs) for size in sizes]


@pytest.mark.parametrize("name", ["masked@32", "tagger@16", "smooth@200", "unmasked@16", "half", "detect", "shout"])
def test_answers_are_those_of_the_cpu_recorded_or_not(
    name: str, models: dict[str, ServedModel], executor: CudaExecutor
) -> None:
    model = models[name]
    executor.load(model)
    executor.warm_up(name, [1, 2, 4])
    with CpuExecutor(1) as host:
        host.load(model)
        for count in (1, 3, 4, 2, 1):
            items = items_of(model, count)
            for found, expected in zip(answers(executor, model, items), answers(host, model, items), strict=True):
                for one, other in zip(found, expected, strict=True):
                    assert one.shape == other.shape and one.dtype == other.dtype
                    if one.dtype == object:
                        assert one.tolist() == other.tolist()
                    elif model.outputs[0].datatype == "BF16":
                        one, other = (torch.from_numpy(x).view(torch.bfloat16).float().numpy() for x in (one, other))
                        np.testing.assert_allclose(one, other, rtol=2e-2, atol=2e-2)
                    else:
                        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)


def test_buckets_are_recorded_as_graphs_and_share_their_compiled_form(models: dict[str, ServedModel]) -> None:
    assert models["masked@32"].build("cpu") is models["masked@16"].build("cpu")
    api = FakeCuda()
    executor = CudaExecutor(1, api=api)  # type: ignore[arg-type]
    try:
        for name in ("masked@16", "masked@32"):
            executor.load(models[name])
            executor.warm_up(name, [1, 2])
        assert sorted(api.captures) == sorted([(priority, size) for priority in (0, 1) for size in (1, 2)] * 2)
    finally:
        executor.close()


def test_an_item_that_does_not_fit_its_bucket_fails_alone(models: dict[str, ServedModel]) -> None:
    with CpuExecutor(1) as executor:
        executor.load(models["tagger@4"])
        results = Results()
        executor.on_result = results
        executor.submit(0, Batch(0, "tagger@4", 0, [(np.zeros(5, np.int64),)]))
        error = results.wait().error
        assert error is not None and "input 'ids' of shape (5,); model 'tagger@4' takes (4,)" in error
