"""The engine as a library, on a simulated device."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_models

from serving import library
from serving.executors.factory import make_executor
from serving.library import HIGH, LOW, LibraryEngine, open_engine
from traces.errors import InputError

VALUES = np.zeros(16, np.float32)
COLD_S = 1.5


@asynccontextmanager
async def opened(**settings: Any) -> AsyncIterator[LibraryEngine]:
    async with open_engine(device="sim:gpu-v100", profile="gpu-v100", **settings) as engine:
        yield engine


def test_a_request_is_served_quoted_and_counted() -> None:
    async def scenario() -> None:
        async with opened() as engine:
            assert set(engine.models) == {"alexnet", "resnet50", "ssd", "vgg19"}
            result = await engine.infer("resnet50", VALUES, HIGH, 1000.0)
            assert result.outcome == "met"
            assert result.output is not None and result.output.shape == (16,)
            assert (
                engine.quote("resnet50", HIGH, 1000.0).probability > 0.5 > engine.quote("vgg19", LOW, 0.1).probability
            )
            levels = engine.quote("resnet50", HIGH, 50.0).finish_ms
            assert list(levels) == [0.5, 0.9, 0.95]
            state = engine.state()
            assert (state.queued, state.in_flight, state.free_streams) == ({"high": 0, "low": 0}, 0, 4)
            assert state.ended["high"]["met"] == 1
        ended = await engine.infer("resnet50", VALUES)
        assert (ended.outcome, ended.reason) == ("dropped", "stopping")
        with pytest.raises(InputError, match="closed"):
            engine.quote("resnet50")

    asyncio.run(scenario())


def test_what_is_queued_lowers_the_quote_and_what_ends_is_learned() -> None:
    async def scenario() -> None:
        async with opened(queue_places=256) as engine:
            before = engine.quote("vgg19", LOW, 60.0)
            # More than the four streams take in one batch each.
            waiting = [asyncio.ensure_future(engine.infer("vgg19", VALUES, LOW, 5000.0)) for _ in range(256)]
            await asyncio.sleep(0)
            behind = engine.quote("vgg19", LOW, 60.0)
            assert behind.finish_ms[0.5] > 3 * before.finish_ms[0.5]
            assert behind.probability < before.probability
            assert {result.outcome for result in await asyncio.gather(*waiting)} == {"met"}
            assert engine.quote("vgg19", LOW, 60.0).probability > behind.probability

    asyncio.run(scenario())


@asynccontextmanager
async def tensor_models(folder: Path, **settings: Any) -> AsyncIterator[LibraryEngine]:
    """Two models of many tensors and of any length, on the CPU."""
    ids = "{shape: [-1], datatype: INT64, high: 50, bounded: true}"
    text = "{text: {shape: [1], datatype: BYTES}}"
    (folder / "models.yaml").write_text(
        f"- {{name: masked, source: 'tensor_models:masked', inputs: {{ids: {ids}, attention_mask: {{shape: [-1],"
        f" datatype: INT64, optional: true, default: 1}}}}, max_size: 8}}\n"
        f"- {{name: shout, source: 'tensor_models:shout', inputs: {text}}}\n"
    )
    async with open_engine(
        str(folder / "models.yaml"), device="cpu", streams=1, batch_sizes=[1, 2], **settings
    ) as engine:
        yield engine


def test_named_arrays_of_any_length_are_served_by_the_bucket_that_holds_them(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with tensor_models(tmp_path) as engine:
            assert engine.models == ("masked", "shout")
            for size, bucket in ((1, "masked@1"), (3, "masked@4"), (8, "masked@8")):
                ids, mask = np.arange(size), np.ones(size, np.int64)
                given = await engine.infer("masked", {"attention_mask": mask, "ids": ids}, HIGH, 5000.0)
                left_out = await engine.infer("masked", {"ids": ids}, HIGH, 5000.0)
                assert given.model == left_out.model == bucket
                assert given.outputs is not None and left_out.outputs is not None
                assert int(given.outputs[1]) == int(left_out.outputs[1]) == size
                np.testing.assert_array_equal(given.outputs[0], left_out.outputs[0])
                assert engine.quote("masked", HIGH, 5000.0, size).probability > 0.5
            text = await engine.infer("shout", np.array([b"loud"], object), deadline_ms=5000.0)
            assert text.output is not None and text.output.tolist() == [b"LOUD"]
            for values, message in (
                ({"ids": np.arange(9)}, "size 9 is over 8"),
                ({"ids": np.arange(3), "attention_mask": np.ones(2, int)}, "must be the same in all inputs"),
                ({"attention_mask": np.ones(2, int)}, "input 'ids' is missing"),
                ({"ids": np.arange(3), "mask": np.ones(3, int)}, "no input 'mask'"),
                ({"ids": np.array([50])}, "takes integers from 0 to 49"),
            ):
                with pytest.raises(InputError, match=message):
                    await engine.infer("masked", values)
            with pytest.raises(InputError, match="size 9 is over 8"):
                engine.quote("masked", size=9)

    asyncio.run(scenario())


def test_a_model_that_is_out_of_memory_is_loaded_when_it_is_asked_for(tmp_path: Path) -> None:
    async def scenario() -> None:
        (tmp_path / "models.yaml").write_text(
            "".join(f"- {{name: {name}, source: 'toy_models:wide', input_shape: [4]}}\n" for name in "abc")
        )
        listing, values = str(tmp_path / "models.yaml"), np.ones(4, np.float32)
        async with open_engine(listing, device="cpu", streams=1, batch_sizes=[1, 2], memory_limit="45M") as engine:
            assert set(engine.models) == {"a", "b", "c"} and engine.engine.models == ("b", "c")
            assert engine.quote("a", LOW, 60_000.0).probability == 1.0
            assert engine.quote("a", LOW, 1e-3).probability == 0.0
            dropped = await engine.infer("a", values, LOW, 1e-3)
            assert dropped.outcome == "dropped" and "must be loaded first" in dropped.message
            result = await engine.infer("a", values, LOW, 60_000.0)
            assert result.outcome == "met" and result.output is not None
            assert "a" in engine.engine.models and set(engine.models) == {"a", "b", "c"}

    asyncio.run(scenario())


def test_what_only_the_first_load_takes_does_not_shut_a_model_out(tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text(
        "".join(
            f"- {{name: {name}, source: 'toy_models:{source}', input_shape: [4]}}\n"
            for name, source in (("a", "cold"), ("b", "wide"), ("c", "wide"))
        )
    )

    async def scenario() -> float:
        settings: dict[str, Any] = {"device": "cpu", "streams": 1, "batch_sizes": [1, 2], "memory_limit": "45M"}
        toy_models.COLD[:] = [COLD_S]
        async with open_engine(str(tmp_path / "models.yaml"), **settings) as engine:
            assert not toy_models.COLD
            return engine.plane.repository.evicted["a"].load_ms

    assert asyncio.run(scenario()) < 1e3 * COLD_S


def test_a_model_that_could_never_come_back_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text(
        "".join(f"- {{name: {name}, source: 'toy_models:wide', input_shape: [4]}}\n" for name in "ab")
    )

    async def scenario() -> None:
        settings: dict[str, Any] = {"device": "cpu", "streams": 1, "batch_sizes": [1, 2], "memory_limit": "25M"}
        async with open_engine(str(tmp_path / "models.yaml"), **settings):
            raise AssertionError

    with pytest.raises(
        InputError, match="one must stay while another is loaded: model 'a' needs .* raise --memory_limit"
    ):
        asyncio.run(scenario())


def test_whoever_gives_up_on_opening_leaves_no_device_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on, opening = threading.Event(), threading.Event(), library.open_models
    made: list[library.OpenModels] = []

    def open_models(*args: Any) -> library.OpenModels:
        begun.set()
        go_on.wait(60)
        made.append(opening(*args))
        return made[0]

    async def enter() -> None:
        async with opened():
            raise AssertionError

    async def scenario() -> None:
        before = set(threading.enumerate())
        task = asyncio.ensure_future(enter())
        while not begun.is_set():
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()
        while not made or set(threading.enumerate()) - before:
            await asyncio.sleep(0.01)

    monkeypatch.setattr(library, "open_models", open_models)
    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_text_is_taken_as_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text(
        "- {name: shout, source: 'tensor_models:shout', inputs: {text: {shape: [1], datatype: BYTES}}}\n"
    )

    async def scenario() -> None:
        async with open_engine(str(tmp_path / "models.yaml"), device="cpu", streams=1, batch_sizes=[1]) as engine:
            (spec,) = engine.inputs("shout")
            said = []
            for word in ("h\u00e9", "h\u00e9".encode()):
                given = np.full([1] * len(spec.shape), word, object)
                result = await engine.infer("shout", given, LOW, 60_000.0)
                assert result.outcome == "met", result.message
                assert result.outputs is not None
                said.append(result.outputs[0])
            np.testing.assert_array_equal(*said)
            with pytest.raises(InputError, match="an element of BYTES is int"):
                await engine.infer("shout", np.full([1] * len(spec.shape), 7, object))

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"priority": True}, "priority is True"),
        ({"priority": 1.0}, "priority is 1.0"),
        ({"deadline_ms": "50"}, "deadline_ms is '50'"),
        ({"deadline_ms": None}, "deadline_ms is None"),
        ({"deadline_ms": float("nan")}, "deadline_ms is nan"),
        ({"model": None}, "model is None; it must be a name"),
        ({"model": "no-such"}, "model 'no-such' is not served"),
        ({"values": np.zeros(3, np.float32)}, "takes FP32 [16]"),
        ({"priority": 7}, "priority is 7"),
        ({"deadline_ms": 0.0}, "it must be a number above 0"),
        ({"deadline_ms": np.timedelta64(5, "ms")}, "it must be a number above 0"),
        ({"values": [[1.0], [1.0, 2.0]]}, "input: "),
    ],
)
def test_bad_input_is_one_clear_line(call: dict[str, Any], message: str) -> None:
    async def scenario() -> None:
        async with opened() as engine:
            await engine.infer(**({"model": "ssd", "values": VALUES} | call))

    with pytest.raises(InputError) as caught:
        asyncio.run(scenario())
    assert message in str(caught.value)


def test_a_closed_engine_leaves_no_thread() -> None:
    async def scenario() -> None:
        async with opened():
            pass

    asyncio.run(scenario())  # what is made once is there
    before = {thread.name for thread in threading.enumerate()}, threading.active_count()
    for _ in range(2):
        asyncio.run(scenario())
    end = time.monotonic() + 10.0
    while threading.active_count() > before[1] and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() <= before[1], {thread.name for thread in threading.enumerate()} - before[0]


def test_unknown_settings_and_devices_are_refused() -> None:
    async def scenario(**settings: Any) -> None:
        async with open_engine(**settings):
            raise AssertionError

    for settings, message in (
        ({"speed": 2}, "speed is no setting of an engine; it takes queue_places,.*policy,.*"),
        ({"peers": ["a:1"]}, "peers"),
        ({"logdir": "runs"}, "logdir"),
        ({"least_quote": 0.5}, "least_quote"),
        ({"models": 5}, "open_engine"),
        ({"streams": "2"}, "streams: '2'; expected a whole number"),
        ({"streams": 2.5}, "streams: 2.5"),
        ({"models": [3]}, "models: "),
        ({"policy": None}, "policy: None"),
        ({"device": None}, "device: None"),
        ({"profile": 3}, "profile: 3"),
        ({"queue_places": 1.5}, "queue_places: 1.5"),
        ({"policy": "preempt"}, "--policy preempt.*only the simulator can"),
        ({"policy": "auto", "candidates": ("edf", "preempt")}, "--candidates preempt.*only the simulator can"),
        ({"high_weight": 0.0}, "high_weight"),
        ({"high_weight": float("nan")}, "high_weight"),
        ({"device": "sim"}, "it must name a profile"),
        ({"device": "sim:gpu-v100:fast"}, "slowness 'fast'"),
    ):
        with pytest.raises(InputError, match=message):
            asyncio.run(scenario(**settings))


def test_a_simulated_device_takes_the_time_of_the_profile_and_no_cpu() -> None:
    with make_executor("sim:gpu-v100:3", 1) as slow, make_executor("sim:gpu-v100", 1) as plain:
        from serving.models.load import load_model, spec_of

        took = {}
        for name, executor in (("slow", slow), ("plain", plain)):
            executor.load(load_model(spec_of("vgg19=builtin:empty")))
            cpu = time.process_time()
            runs = executor.time_alone("vgg19", 32, 5)
            took[name] = min(run.phases.exec_end_ms - run.phases.exec_start_ms for run in runs)
            assert time.process_time() - cpu < 0.5 * 5 * took[name] / 1e3
        assert took["plain"] >= 10.0
        assert 2.0 < took["slow"] / took["plain"] < 4.0
