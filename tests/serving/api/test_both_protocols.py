"""HTTP and gRPC take, refuse, limit, count and name alike."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc
import numpy as np
import pandas as pd
import pytest
from api_server import FakeRepository, X, toy_profile
from both_protocols import SERVICE, Both, both, request
from yarl import URL

from serving.api.protocol import inference_pb2 as pb
from serving.engine.request import Observer, Origin, Refused, RequestResult
from serving.executors.cpu import CpuExecutor
from serving.models.load import load_model
from serving.models.served import ModelSpec
from serving.observers.logs import RequestLog
from serving.observers.prometheus import Metrics
from serving.observers.recorder import Recorder
from serving.observers.timeline import TimelineWriter

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
INPUT = request()["inputs"][0]


@pytest.fixture
async def clients(executor: CpuExecutor) -> AsyncIterator[Both]:
    async with both(executor) as made:
        yield made


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (request(parameters={"prioritty": 1}), "parameter 'prioritty' is not supported"),
        (request(parameters={"triton_enable_empty_final_response": True}), "is not supported"),
        (request(parameters={"headers": "x"}), "parameter 'headers' is not supported"),
        (request(parameters={"sequence_id": 7}), "stateful"),
        (request(parameters={"sequence_id": "a"}), "stateful"),
        (request(parameters={"sequence_start": True}), "stateful"),
        (request(parameters={"priority": 3}), "priority is '3'"),
        (request(parameters={"priority": "1"}), "priority is '1'"),
        (request(parameters={"priority": True}), "priority is 'True'"),
        (request(parameters={"timeout": -1}), "timeout is '-1'"),
        (request(parameters={"timeout": 0.5}), "timeout is '0.5'"),
        (request(parameters={"quote": 1}), "quote is '1'; it must be true or false"),
        (request(id="x" * 1025), "id must be"),
        (request(inputs=[]), "a list of tensors; expected 'input'"),
        (request(inputs=[INPUT, INPUT]), "input: given twice"),
        (request(inputs=[INPUT | {"name": "x"}]), "no tensor 'x'"),
        (request(inputs=[INPUT | {"datatype": "FP64"}]), "datatype is 'FP64'"),
        (request(inputs=[INPUT | {"shape": [2, 5]}]), "shape is [2, 5]"),
        (request(inputs=[INPUT | {"shape": [0, 4]}]), "0 items"),
        (request(inputs=[INPUT | {"data": [1.0] * 7}]), "7 elements"),
        (request(inputs=[INPUT | {"parameters": {"scale": 2}}]), "parameter 'scale' is not supported"),
        (request(inputs=[INPUT | {"parameters": {"shared_memory_region": "r"}}]), "shared memory"),
        (request(outputs=[{"name": "logits"}]), "no tensor 'logits'"),
        (request(outputs=[{"name": "output"}, {"name": "logits"}]), "no tensor 'logits'"),
        (request(outputs=[{"name": "output", "parameters": {"classification": 3}}]), "classification"),
        (request(outputs=[{"name": "output", "parameters": {"shared_memory_region": "r"}}]), "shared memory"),
        (request(outputs=[{"name": "output", "parameters": {"shared_memory_byte_size": 8}}]), "is not supported"),
    ],
)
async def test_what_is_unknown_unsupported_or_wrong_is_refused_in_the_same_words(
    clients: Both, head: dict[str, Any], words: str
) -> None:
    over_http, over_grpc = await clients.over_http(head), await clients.over_grpc(head)
    assert words in over_http.error and over_grpc.error == over_http.error


@pytest.mark.parametrize(
    "head",
    [
        request(parameters={"sequence_id": 0, "sequence_start": False, "sequence_end": False}),
        request(parameters={"sequence_id": ""}),
        request(parameters={"priority": 0, "timeout": 0}),
        request(outputs=[{"name": "output"}] * 2),
        request(outputs=[]),
    ],
)
async def test_what_asks_for_nothing_special_is_answered(clients: Both, head: dict[str, Any]) -> None:
    assert (await clients.over_http(head)).output == (2 * X).ravel().tolist() == (await clients.over_grpc(head)).output


@pytest.mark.parametrize("change", [{"inputs_": []}, {"inputs": [INPUT | {"layout": "NHWC"}]}, {"timeout": 1}])
async def test_fields_that_are_not_known_are_refused(clients: Both, change: dict[str, Any]) -> None:
    assert "is not supported; known: " in (await clients.over_http(request(**change))).error
    unknown = pb.ModelInferRequest(model_name="double", inputs=[{"name": "input"}])
    unknown.inputs[0].MergeFromString(b"\xf8\x07\x01")  # field 127
    with pytest.raises(grpc.aio.AioRpcError, match="field number 127 is not supported"):
        await clients.call(f"{SERVICE}/ModelInfer", unknown)


async def test_the_repository_refuses_what_it_does_not_know(executor: CpuExecutor) -> None:
    async with both(executor, repository=FakeRepository()) as clients:
        load = "/v2/repository/models/double/load"
        for path, sent in (
            (load, {"parameters": {"config": "{}"}}),
            (load, {"config": "{}"}),
            (load, {"parameters": []}),
            ("/v2/repository/models/double/unload", {"parameters": {"force": True}}),
            ("/v2/repository/index", {"only_ready": True}),
        ):
            status, answer, _ = await clients.http.ask("POST", path, json=sent)
            assert status == 400 and ("is not supported" in answer["error"] or "JSON object" in answer["error"]), sent
        for message in (
            pb.RepositoryModelLoadRequest(model_name="double", parameters={"config": {"string_param": "{}"}}),
            pb.RepositoryModelUnloadRequest(model_name="double", parameters={"force": {"bool_param": True}}),
            pb.RepositoryModelLoadRequest(model_name="double", repository_name="other"),
            pb.RepositoryIndexRequest(repository_name="other"),
        ):
            with pytest.raises(grpc.aio.AioRpcError, match="is not supported"):
                await clients.call(f"{SERVICE}/{type(message).__name__.removesuffix('Request')}", message)


@pytest.mark.parametrize("settings", [{"max_body_bytes": 2000, "max_grpc_bytes": 1200}, {"max_per_client": 3}, {}])
async def test_the_configuration_tells_how_many_items_a_call_may_have(
    executor: CpuExecutor, settings: dict[str, int]
) -> None:
    async with both(executor, **settings) as clients:
        config = (await clients.http.ask("GET", "/v2/models/double/config"))[1]
        told = (await clients.call(f"{SERVICE}/ModelConfig", pb.ModelConfigRequest(name="double")))[0].config
        assert {name: one.string_value for name, one in told.parameters.items()} == {
            name: one["string_value"] for name, one in config["parameters"].items()
        }
        for name, value in settings.items():
            assert told.parameters[name].string_value == str(value)
        for n, ok in ((config["max_batch_size"], True), (config["max_batch_size"] + 1, False)):
            values = np.ones((n, 4), np.float32)
            tensor = {"name": "input", "datatype": "FP32", "shape": [n, 4], "parameters": {"binary_data_size": 16 * n}}
            text = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
            sent = {"data": text + values.tobytes(), "headers": {"Inference-Header-Content-Length": str(len(text))}}
            url = f"http://127.0.0.1:{clients.http.port}/v2/models/double/infer"
            async with clients.http.session.post(url, **sent) as response:
                assert (response.status == 200) is ok, n
        for n, ok in ((told.max_batch_size, True), (told.max_batch_size + 1, False)):
            tensor = INPUT | {"shape": [n, 4], "data": [1.0] * 4 * n}
            assert (not (await clients.over_grpc(request(inputs=[tensor]))).error) is ok, n


class Seen(Observer):
    """Remembers."""

    def __init__(self) -> None:
        self.refused: list[Refused] = []
        self.ended: list[RequestResult] = []

    def request_refused(self, refused: Refused) -> None:
        self.refused.append(refused)

    def request_ended(self, result: RequestResult) -> None:
        self.ended.append(result)


async def test_refusals_at_the_entry_are_counted_and_logged_with_the_clients_id(
    executor: CpuExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "serving.requests")
    async with both(executor, token="secret", max_per_client=1, max_body_bytes=5000) as clients:
        metrics, seen = Metrics(clients.plane.engine), Seen()
        clients.plane.engine.observers += [RequestLog(), metrics, seen]
        good, two = request(inputs=[INPUT | {"shape": [1, 4], "data": [1.0] * 4}]), request()
        known = {"Authorization": "Bearer secret", "X-Request-Id": "http-7", "traceparent": TRACE}
        metadata = (("authorization", "Bearer secret"), ("x-request-id", "grpc-7"), ("traceparent", TRACE))
        for reason, head, model, drop in (
            ("unauthenticated", good, "double", 1),
            ("not_found", good, "nowhere", 0),
            ("bad_input", two, "double", 0),
            ("bad_input", good | {"parameters": {"x": 1}}, "double", 0),
        ):
            seen.refused.clear()
            headers = dict(list(known.items())[drop:])
            replies = [
                await clients.over_http(head, model, **headers),
                await clients.over_grpc(head, model, metadata=metadata[drop:]),
            ]
            assert [(one.protocol, one.reason, one.origin) for one in seen.refused] == [
                (name, reason, (f"{name}-7", TRACE)) for name in ("http", "grpc")
            ]
            assert [(r.headers["x-request-id"], r.headers["traceparent"]) for r in replies] == [
                ("http-7", TRACE),
                ("grpc-7", TRACE),
            ]
        known.pop("X-Request-Id")
        reply = await clients.over_http(good | {"id": "in the body"}, "nowhere", **known)
        assert reply.headers["x-request-id"] == seen.refused[-1].origin.client_id == "in the body"
        large = await clients.over_http(good | {"id": "x" * 5000}, **known)
        assert "5000 bytes" in large.error and seen.refused[-1].reason == "too_large"
        text = metrics.render()[0].decode()
        for name in ("http", "grpc"):
            assert f'strait_calls_refused_total{{protocol="{name}",reason="bad_input"}} 2.0' in text
        lines = [record.getMessage() for record in caplog.records]
        assert any("'http-7'" in line and "known: " in line for line in lines)
        assert any("'grpc-7'" in line and "'nowhere' is not served" in line for line in lines)


async def test_nonsense_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "serving.requests")
    log = RequestLog()
    for _ in range(1000):
        log.request_refused(Refused("http", "bad_input", "no", "1.2.3.4", Origin()))
    assert len(caplog.records) <= 50


async def test_the_clients_id_and_trace_come_back_and_stand_in_what_is_kept(
    executor: CpuExecutor, tmp_path: Path
) -> None:
    async with both(executor) as clients:
        seen, timeline = Seen(), TimelineWriter(tmp_path / "timeline.json")
        recorder = Recorder(tmp_path / "run", lambda: None, list)  # type: ignore[arg-type, return-value]
        clients.plane.engine.observers += [seen, timeline, recorder]
        recorder.batch_ended = lambda batch: None  # type: ignore[method-assign]
        for id_, reply in (
            ("mine", await clients.over_http(request(id="mine"), traceparent=TRACE)),
            ("h-1", await clients.over_http(request(), **{"X-Request-Id": "h-1", "traceparent": TRACE})),
            ("mine", await clients.over_grpc(request(id="mine"), metadata=(("traceparent", TRACE),))),
            ("g-1", await clients.over_grpc(request(), metadata=(("x-request-id", "g-1"), ("traceparent", TRACE)))),
        ):
            assert reply.headers["x-request-id"] == id_ and reply.headers["traceparent"] == TRACE
        ids = ["mine", "mine", "h-1", "h-1", "mine", "mine", "g-1", "g-1"]
        assert [one.client_id for one in seen.ended] == ids
        assert {one.traceparent for one in seen.ended} == {TRACE}
        recorder.flush()
        kept = pd.read_parquet(tmp_path / "run" / "0000" / "clients.parquet")
        assert kept["client_id"].tolist() == ids and set(kept["traceparent"]) == {TRACE}
        timeline.close()
        events = json.loads((tmp_path / "timeline.json").read_text())["traceEvents"]
        marks = [event["args"] for event in events if event["ph"] == "i"]
        assert [args["client_id"] for args in marks] == ids and {args["traceparent"] for args in marks} == {TRACE}


async def test_odd_ids_do_no_harm(clients: Both) -> None:
    for odd in ("a\nb", "ü", "\u2028", "x" * 1024, "", "\x00"):
        reply = await clients.over_http(request(id=odd))
        assert reply.error == "" and "\n" not in reply.headers.get("x-request-id", "")
        assert (await clients.over_grpc(request(id=odd))).error == ""
    sent = json.dumps(request(id="x")).replace('"x"', '"\\ud800"').replace("0.0,", "NaN,", 1).encode()
    assert (await clients.http.ask("POST", "/v2/models/double/infer", data=sent))[0] == 400


async def test_the_deadline_of_a_grpc_call_is_that_of_its_requests(clients: Both) -> None:
    seen = Seen()
    clients.plane.engine.observers.append(seen)
    for parameters, timeout, low_ms, high_ms in (
        ({}, 30.0, 10_001, 31_000),
        ({"timeout": 2_000_000}, 30.0, 2000, 2000),
        ({"timeout": 2_000_000}, 1.5, 0, 1600),  # on its way gRPC rounds it
        ({}, None, 10_000, 10_000),  # two items, 5 s each
    ):
        seen.ended.clear()
        assert (await clients.over_grpc(request(parameters=parameters), timeout=timeout)).error == ""
        for one in seen.ended:
            assert low_ms <= round(one.deadline_ms - one.arrival_ms, 3) <= high_ms


async def test_health_follows_the_server(executor: CpuExecutor) -> None:
    async with both(executor, token="secret") as clients:
        method = "grpc.health.v1.Health/Check"

        async def status(service: str = "") -> int:
            return (await clients.call(method, pb.HealthCheckRequest(service=service), "HealthCheckResponse"))[0].status

        assert [await status(name) for name in ("", SERVICE, "double")] == [1, 1, 1]
        with pytest.raises(grpc.aio.AioRpcError, match="no service 'nowhere'"):
            await status("nowhere")
        watch = clients.channel.unary_stream(
            "/grpc.health.v1.Health/Watch", pb.HealthCheckRequest.SerializeToString, pb.HealthCheckResponse.FromString
        )(pb.HealthCheckRequest())
        assert (await watch.read()).status == 1
        await clients.plane.engine.stop(1.0)
        assert (await watch.read()).status == 2 == await status()
        watch.cancel()


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_describes_every_service(clients: Both, version: str) -> None:
    call = clients.channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        pb.ServerReflectionRequest.SerializeToString,
        pb.ServerReflectionResponse.FromString,
    )()

    async def ask(**asked: str) -> Any:
        await call.write(pb.ServerReflectionRequest(**asked))
        return await call.read()

    services = [one.name for one in (await ask(list_services="")).list_services_response.service]
    assert {SERVICE, "grpc.health.v1.Health"} <= set(services)
    for name in services:
        (file,) = (await ask(file_containing_symbol=name)).file_descriptor_response.file_descriptor_proto
        assert name.rpartition(".")[2].encode() in file
    assert (await ask(file_containing_symbol="no.Such")).error_response.error_code == 5
    assert (await ask(all_extension_numbers_of_type="x")).error_response.error_code == 12


async def test_compressed_messages_count_by_what_they_unpack_to(executor: CpuExecutor) -> None:
    async with both(executor, max_grpc_bytes=100_000) as clients:
        bomb = pb.ModelInferRequest(model_name="double", raw_input_contents=[bytes(10_000_000)])
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await clients.call(f"{SERVICE}/ModelInfer", bomb, compression=grpc.Compression.Gzip)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await clients.over_grpc(request(), compression=grpc.Compression.Gzip)).error == ""


@pytest.mark.parametrize("way", ["none", "gzip", "deflate"])
async def test_grpc_answers_may_be_compressed(executor: CpuExecutor, way: str) -> None:
    async with both(executor, grpc_compression=way) as clients:
        assert (await clients.over_grpc(request())).output == (2 * X).ravel().tolist()


@pytest.mark.parametrize(
    "name", ["a b", "ü", "a/b", "a%2Fb", "a+b", "{x}", "..", "infer", "versions", "a?b#c", "x" * 300]
)
async def test_models_may_have_any_name(executor: CpuExecutor, name: str) -> None:
    executor.load(load_model(ModelSpec("new", "toy_models:double", (4,), "float32", compiled=False)))
    async with both(executor) as clients:
        clients.plane.engine.put_model(replace(toy_profile().select(["double"]), models=(name,)), "new")
        url = f"http://127.0.0.1:{clients.http.port}/v2/models/{quote(name, safe='')}"
        for path in ("", "/config", "/ready", "/stats", "/versions/1"):
            async with clients.http.session.get(URL(url + path, encoded=True)) as response:
                assert response.status == 200 and name in (await response.text())
        async with clients.http.session.post(URL(f"{url}/infer", encoded=True), json=request()) as response:
            assert response.status == 200
        assert (await clients.over_grpc(request(), name)).error == ""
    executor.unload(name)


async def test_a_model_named_stats_can_be_described(executor: CpuExecutor) -> None:
    executor.load(load_model(ModelSpec("new", "toy_models:double", (4,), "float32", compiled=False)))
    async with both(executor) as clients:
        assert set((await clients.http.ask("GET", "/v2/models/stats"))[1]) == {"model_stats"}
        clients.plane.engine.put_model(replace(toy_profile().select(["double"]), models=("stats",)), "new")
        _, answer, _ = await clients.http.ask("GET", "/v2/models/stats")
        assert answer["name"] == "stats" and answer["inputs"][0]["shape"] == [-1, 4]
        assert "stats" in [one["name"] for one in answer["model_stats"]]
    executor.unload("stats")
