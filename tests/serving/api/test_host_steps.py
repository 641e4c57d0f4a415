"""Code of the user's before and after a model: it is the model's to clients, its time counts, and its faults are its own."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import http_client
import numpy as np
import psutil
import pytest
import tensor_models
from api_server import until
from tensor_server import Client, door_to, plane_of

from serving.api.dataplane import DataPlane
from serving.api.grpc import start_grpc
from serving.api.http import start_http
from serving.api.processes.steps import check_steps
from serving.engine.request import Observer, RequestResult
from serving.executors.cpu import CpuExecutor
from serving.library import open_engine
from serving.models.listing import read_entries
from serving.models.load import load_buckets
from serving.models.served import HostStep, ModelSpec
from serving.models.tensors import TensorSpec
from traces.errors import InputError

HERE = str(Path(__file__).parent)
SLOW_SPACES = 10  # as in host_steps.py
TEXT = (TensorSpec("text", "BYTES", ()),)
SAID = (TensorSpec("said", "BYTES", ()), TensorSpec("sum", "FP32", ()))
BEFORE, AFTER = HostStep("host_steps:lengths", TEXT, HERE), HostStep("host_steps:words", SAID, HERE)
DOUBLE = ModelSpec("double", "toy_models:double", (4,), "float32", compiled=False)
BOTH = replace(DOUBLE, preprocess=BEFORE, postprocess=AFTER)
MASKED = replace(tensor_models.MODELS["masked"], preprocess=HostStep("host_steps:tokens", TEXT, HERE))


@pytest.fixture(scope="module")
def executor() -> Iterator[CpuExecutor]:
    made = CpuExecutor(2)
    before = replace(DOUBLE, name="before", preprocess=BEFORE)
    after = replace(tensor_models.MODELS["tagger"], name="after", postprocess=HostStep("host_steps:first", FIRST, HERE))
    for spec in (replace(BOTH, name="both"), before, after, MASKED):
        for model in check_steps(load_buckets(spec)):
            made.load(model)
    yield made
    made.close()


FIRST = (TensorSpec("first", "FP32", (2,)),)


@pytest.fixture
async def plane(executor: CpuExecutor) -> AsyncIterator[DataPlane]:
    async with plane_of(executor) as made:
        yield made


@asynccontextmanager
async def http_of(plane: Any) -> AsyncIterator[http_client.Client]:
    listener = await start_http(plane)
    async with http_client.aiohttp.ClientSession() as session:
        yield http_client.Client(plane, listener.port, session)
    await listener.close()


def sent(*texts: str, **parameters: Any) -> dict[str, Any]:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [len(texts)], "data": list(texts)}
    return {"inputs": [tensor], "parameters": {"timeout": 60_000_000} | parameters}


async def ask(client: http_client.Client, model: str, *texts: str, **parameters: Any) -> tuple[int, Any]:
    status, answer, _ = await client.ask("POST", f"/v2/models/{model}/infer", json=sent(*texts, **parameters))
    return status, answer


async def test_clients_send_what_the_code_before_takes_and_get_what_the_code_after_gives(plane: DataPlane) -> None:
    async with http_of(plane) as client:
        status, answer = await ask(client, "both", "a big Apple", "xyz")
        assert status == 200, answer
        said, total = answer["outputs"]
        assert said["data"] == ["22 bytes, 6 vowels", "6 bytes, 0 vowels"] and total["data"] == [34.0, 6.0]
        _, described, _ = await client.ask("GET", "/v2/models/both")
        assert [one["name"] for one in described["inputs"]] == ["text"]
        assert [(one["name"], one["datatype"]) for one in described["outputs"]] == [("said", "BYTES"), ("sum", "FP32")]
        asked = sent("abc") | {"outputs": [{"name": "sum"}]}
        _, answer, _ = await client.ask("POST", "/v2/models/both/infer", json=asked)
        assert [one["name"] for one in answer["outputs"]] == ["sum"]
        status, answer = await ask(client, "before", "ace")
        assert status == 200 and answer["outputs"][0]["data"] == [6.0, 4.0, 0.0, 0.0]


@pytest.mark.parametrize("protocol", ["http", "grpc"])
async def test_triton_clients_over_both_protocols_directly_and_through_a_door(plane: DataPlane, protocol: str) -> None:
    async with door_to(plane) as door:
        for at in (plane, door):
            listener = await {"http": start_http, "grpc": start_grpc}[protocol](at)

            def ask(port: int = listener.port) -> tuple[Any, Any, Any]:
                client = Client(protocol, port)
                both = client.infer("both", text=(np.array([b"a b", b"AB"], object), "BYTES"))
                texts = np.array([b"abc", b"a"], object)
                masked = client.infer("masked", text=(texts, "BYTES"))
                return both.as_numpy("said").tolist(), masked.as_numpy("count").tolist(), masked.as_numpy("mean").shape

            said, count, shape = await asyncio.to_thread(ask)
            assert said == [b"6 bytes, 2 vowels", b"4 bytes, 0 vowels"] and count == [3, 1] and shape == (2, 8)
            await listener.close()


async def test_a_size_that_the_code_makes_chooses_the_bucket(plane: DataPlane) -> None:
    async with http_of(plane) as client:
        for length, status in ((2, 200), (9, 200), (32, 200), (33, 500)):
            found, answer = await ask(client, "masked", "a" * length)
            assert found == status, answer
        assert "preprocess of model 'masked'" in answer["error"] and "size 33 is over 32" in answer["error"]


async def test_code_after_a_model_of_any_size(plane: DataPlane) -> None:
    async with http_of(plane) as client:
        for length in (3, 12):
            tensor = {"name": "ids", "datatype": "INT64", "shape": [1, length], "data": [7] * length}
            status, answer, _ = await client.ask("POST", "/v2/models/after/infer", json={"inputs": [tensor]})
            assert status == 200 and answer["outputs"][0]["shape"] == [1, 2], answer


@pytest.mark.parametrize(
    ("text", "status", "words"),
    [
        ("bad", 400, "preprocess of model 'both': this text is bad"),
        ("bug", 500, "KeyError: 'bug'"),
        ("exit", 500, "SystemExit: 3"),
        ("crash", 500, "ended with status -11"),
        ("leaves a child", 500, "SystemExit: 4"),
        ("two lines", 400, "preprocess of model 'both': first"),
        ("odd words", 400, "xxx"),
        ("misshapen", 500, "it returns 'input' as FP32 [1, 5]; expected FP32 [1, 4]"),
    ],
)
async def test_a_fault_of_the_code_is_one_answer(plane: DataPlane, text: str, status: int, words: str) -> None:
    async with http_of(plane) as client:
        beside = asyncio.ensure_future(ask(client, "both", "slow 100"))
        found, answer = await ask(client, "both", text)
        assert found == status and words in answer["error"] and "\n" not in answer["error"]
        assert len(answer["error"]) < 600
        assert (await beside)[0] == 200
        for _ in range(4):  # in each of the processes
            assert (await ask(client, "both", "fine"))[0] == 200
        seen = plane.engine.ledger.counts()
        assert seen["low"]["failed"] == seen["high"]["failed"] == 0, "the engine never saw it"


async def test_time_of_the_code_counts_against_the_deadline(plane: DataPlane) -> None:
    async with http_of(plane) as client:
        assert (await ask(client, "both", "fine"))[0] == 200  # its processes are there
        status, answer = await ask(client, "both", "slow 60")
        assert status == 200 and answer["parameters"]["latency_us"] > 60_000
        assert answer["parameters"]["outcome"] == "met"
        for _ in range(6):
            await ask(client, "both", "slow 60")

        quoted = [plane.quotation("both", "", {"timeout": us}).probability for us in (30_000, 60_000_000)]
        assert quoted[0] < 0.5 < quoted[1]
        status, answer = await ask(client, "both", "fine", timeout=30_000)
        assert status == 504 and "out of reach" in answer["error"], "what it usually takes leaves no time for the model"
        for _ in range(40):  # what was learned is doubted, so that a request is tried again
            status, answer = await ask(client, "both", "fine", timeout=30_000)
            if status == 200:
                break
        assert status == 200


async def test_code_that_was_slow_for_a_while_does_not_shut_its_model_out(plane: DataPlane) -> None:
    async with http_of(plane) as client:
        assert (await ask(client, "both", "fine"))[0] == 200
        for _ in range(4):
            await ask(client, "both", " " * SLOW_SPACES)
        # Time is left for the model by what its code usually takes, but less than it needs.
        plane.engine.scheduler.tables.solo[...] *= 100.0
        stepped = plane.stepped(plane.views["both"])
        assert stepped is not None
        timeout = round(1e3 * (stepped.expected_ms(1) + 50.0))
        assert (await ask(client, "both", "fine", timeout=timeout))[0] == 504
        found = [(await ask(client, "both", "fine", timeout=timeout))[0] for _ in range(40)]
        assert found[-1] == 200, "and what was learned fades"


async def test_observers_see_what_clients_see(plane: DataPlane) -> None:
    seen: list[RequestResult] = []

    class Seen(Observer):
        def request_ended(self, result: RequestResult) -> None:
            seen.append(replace(result))

    async with http_of(plane) as client:
        await asyncio.gather(*(ask(client, "both", "slow 20") for _ in range(4)))  # both processes are there
        batches = plane.engine.batches
        plane.engine.observers.append(Seen())
        for text, status, outcome in (
            ("fine", 200, "met"),
            (" " * (SLOW_SPACES + 1), 500, "failed"),
            (" " * SLOW_SPACES, 200, "late"),
        ):
            found, answer = await ask(client, "both", text, timeout=60_000)
            assert found == status, answer
            assert status != 200 or answer["parameters"]["outcome"] == outcome
            (ended,) = seen
            assert ended.outcome == outcome and ended.deadline_ms - ended.arrival_ms == pytest.approx(60.0)
            assert ended.arrival_ms <= ended.offered_ms <= ended.start_ms <= ended.finish_ms
            assert outcome != "late" or ended.latency_ms > 80.0
            assert outcome != "failed" or "KeyError" in ended.message
            seen.clear()
        leaving = asyncio.ensure_future(ask(client, "both", " " * SLOW_SPACES, timeout=10_000_000))
        await until(lambda: plane.engine.batches == batches + 4 and not plane.engine.in_flight)
        assert plane.engine.ledger.inside and not seen, "it is answered, but has not ended"
        leaving.cancel()
        await until(lambda: bool(seen))
        assert seen[0].outcome == "cancelled" and not plane.engine.ledger.inside
        assert plane.engine.offered.sum() == plane.engine.ended.sum() == 8


async def test_the_deadline_may_pass_in_the_code(plane: DataPlane) -> None:
    async with http_of(plane) as client:
        status, answer = await ask(client, "both", "slow 300", timeout=100_000)
        assert status == 504 and "took too long for the deadline" in answer["error"]


async def test_a_process_that_hangs_is_ended(plane: DataPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.api.processes.steps.LONGEST_S", 0.3)
    async with http_of(plane) as client:
        status, answer = await ask(client, "both", "slow 60000", timeout=60_000_000)
        assert status == 500 and "was ended after 0.3 s" in answer["error"]
        monkeypatch.undo()
        assert (await ask(client, "both", "fine"))[0] == 200


def test_the_engine_as_a_library_runs_it(tmp_path: Path) -> None:
    listed = tmp_path / "models.yaml"
    shutil.copy(Path(HERE) / "host_steps.py", tmp_path)
    step = {"function": "host_steps:lengths", "inputs": {"text": {"datatype": "BYTES", "shape": []}}}
    own = {"name": "both", "source": "toy_models:double", "input_shape": [4], "compiled": False, "preprocess": step}
    listed.write_text(json.dumps([own]))

    async def scenario() -> None:
        async with open_engine([str(listed)], streams=1) as engine:
            result = await engine.infer("both", np.array(b"a b c", object), deadline_ms=60_000.0)
            assert result.outcome == "met" and result.output is not None
            assert result.output.tolist() == [10.0, 2.0, 4.0, 0.0]
            with pytest.raises(InputError, match="this text is bad"):
                await engine.infer("both", np.array(b"bad", object), deadline_ms=60_000.0)
            late = await engine.infer("both", np.array(b"slow 50", object), deadline_ms=20.0)
            assert late.outcome == "dropped" and "too long" in late.message
            under_way = asyncio.ensure_future(engine.infer("both", np.array(b"slow 400", object), deadline_ms=60_000.0))
            await asyncio.sleep(0.1)
        for ended in (await under_way, await engine.infer("both", np.array(b"a b c", object), deadline_ms=60_000.0)):
            assert (ended.outcome, ended.reason, ended.message) == ("dropped", "stopping", "the engine is closed")

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (HostStep("host_steps:nowhere", TEXT, HERE), "cannot import 'host_steps:nowhere'"),
        (HostStep("no_such_module:f", TEXT), "cannot import 'no_such_module:f'"),
        (HostStep("host_steps:no_function", TEXT, HERE), "it must be a function"),
        (HostStep("host_steps:fails", TEXT, HERE), "RuntimeError: it never works"),
        (HostStep("host_steps:misnamed", TEXT, HERE), "it returns 'nothing'; the model takes input"),
        (HostStep("host_steps:tokens", TEXT, HERE), "it returns 'ids'; the model takes input"),
    ],
)
def test_code_that_cannot_work_is_refused_at_load(step: HostStep, words: str) -> None:
    with pytest.raises(InputError, match="preprocess of model 'double'") as raised:
        check_steps(load_buckets(replace(DOUBLE, preprocess=step)))
    assert words in str(raised.value) and "\n" not in str(raised.value)


def test_code_after_a_model_must_give_what_was_promised() -> None:
    for tensors, words in (
        ((TensorSpec("said", "FP32", ()),), "it returns 'said' as BYTES"),
        ((TensorSpec("other", "FP32", ()),), "and no other"),
    ):
        with pytest.raises(InputError, match="postprocess of model 'double'.*" + words):
            check_steps(load_buckets(replace(DOUBLE, postprocess=HostStep("host_steps:words", tensors, HERE))))


def test_made_up_items_may_be_refused(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        (model,) = check_steps(load_buckets(replace(DOUBLE, preprocess=HostStep("host_steps:picky", TEXT, HERE))))
    assert model.preprocess is not None and "refuses a made-up item (no picture)" in caplog.text


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ("host_steps:lengths", "expected a mapping with function and inputs"),
        ({"function": "host_steps:lengths"}, "expected a mapping with function and inputs"),
        ({"function": "lengths", "inputs": {"text": []}}, "it must be module:function"),
        ({"function": "a:b", "inputs": {"text": {"datatype": "BYTES"}}}, "preprocess.inputs.text needs a shape"),
        ({"function": "a:b", "inputs": {"text": {"shape": [], "type": "BYTES"}}}, "unknown field 'type'"),
        ({"function": "a:b", "inputs": {}}, "expected a mapping from each tensor's name"),
    ],
)
def test_what_is_written_of_it_is_checked(tmp_path: Path, step: Any, words: str) -> None:
    listed = tmp_path / "models.yaml"
    listed.write_text(
        json.dumps([{"name": "m", "source": "toy_models:double", "input_shape": [4], "preprocess": step}])
    )
    with pytest.raises(InputError) as raised:
        read_entries([str(listed)])
    assert words in str(raised.value) and "models[0] (m)" in str(raised.value)


@pytest.mark.parametrize("text", ["child comes back", "reads"])
async def test_what_the_code_does_to_its_process_reaches_no_other_call(plane: DataPlane, text: str) -> None:
    async with http_of(plane) as client:
        for _ in range(4):
            status, answer = await ask(client, "both", text)
            assert status == 200 and answer["outputs"][1]["data"][0] > 0
            status, answer = await ask(client, "both", "a")
            assert status == 200 and answer["outputs"][0]["data"] == ["2 bytes, 2 vowels"]


async def test_children_of_the_code_end_with_its_process(plane: DataPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.api.processes.steps.LONGEST_S", 1.0)
    here = psutil.Process()
    async with http_of(plane) as client:
        assert (await ask(client, "both", "fine"))[0] == 200
        for text in ("leaves a child", "slow 60000"):
            assert (await ask(client, "both", text, timeout=60_000_000))[0] == 500
        assert (await ask(client, "both", "fine"))[0] == 200
    plane.close()
    await until(lambda: not [one for one in here.children(recursive=True) if "step_process" in " ".join(one.cmdline())])


async def test_one_model_does_not_wait_for_the_code_of_another(plane: DataPlane) -> None:
    async with http_of(plane) as client:
        for model in ("both", "before"):
            assert (await ask(client, model, "fine"))[0] == 200
        begin = time.monotonic()
        slow = [asyncio.ensure_future(ask(client, "both", "slow 1500", timeout=200_000)) for _ in range(6)]
        assert (await ask(client, "before", "fine"))[0] == 200
        assert [status for status, _ in await asyncio.gather(*slow)] == [504] * 6
        assert time.monotonic() - begin < 3.0, "at their deadlines; the code of all takes 4.5 s"


async def test_calls_of_many_items_are_not_judged_by_those_of_one(plane: DataPlane) -> None:
    async with http_of(plane) as client:
        for _ in range(3):
            assert (await ask(client, "both", "slow 40"))[0] == 200
        status, answer = await ask(client, "both", *["a"] * 100, timeout=3_000_000)
        assert status == 200, answer


def test_lists_of_equal_shapes_are_an_array() -> None:
    step = HostStep("host_steps:as_lists", TEXT, HERE)
    (model,) = check_steps(load_buckets(replace(DOUBLE, preprocess=step)))
    assert model.preprocess is not None and model.preprocess.alone_ms > 0.0


def test_modules_of_one_name_in_two_folders_are_two(tmp_path: Path) -> None:
    found = []
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "constants.py").write_text(f"NUMBER = {number}\n")
        (folder / "mine.py").write_text(
            "from constants import NUMBER\n\n\ndef f(output):\n    return output[:, 0] * 0 + NUMBER\n"
        )
        step = HostStep("mine:f", (TensorSpec("number", "FP32", ()),), str(folder))
        found += check_steps(load_buckets(replace(DOUBLE, name=f"m{number}", postprocess=step)))
    executor = CpuExecutor(1)
    for model in found:
        executor.load(model)

    async def scenario() -> None:
        async with plane_of(executor) as plane, http_of(plane) as client:
            for number in (1, 2, 1):
                status, answer, _ = await client.infer(f"m{number}")
                assert status == 200 and answer["outputs"][0]["data"] == [number, number]

    asyncio.run(scenario())
    executor.close()


def test_code_that_was_changed_is_taken_when_the_model_is_loaded_again(tmp_path: Path) -> None:
    listed, code = tmp_path / "models.yaml", tmp_path / "mine.py"
    step = {"function": "mine:f", "outputs": {"number": []}}
    own = {"source": "toy_models:double", "input_shape": [4], "compiled": False}
    listed.write_text(json.dumps([own | {"name": "m", "postprocess": step}, own | {"name": "other"}]))
    code.write_text("def f(output):\n    return output[:, 0]\n")

    async def scenario() -> None:
        async with open_engine([str(listed)], streams=1) as engine:
            given = np.full(4, 3.0, np.float32)
            for factor in (1, 10, 100):
                code.write_text(f"def f(output):\n    return {factor} * output[:, 0]\n")
                await engine.plane.load("m", {})
                result = await engine.infer("m", given, deadline_ms=10_000.0)
                assert result.outcome == "met" and result.output is not None and result.output == 6.0 * factor

    asyncio.run(scenario())
