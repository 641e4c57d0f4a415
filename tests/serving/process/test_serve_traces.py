"""OpenTelemetry traces: a span per request in its client's trace, to a collector that may be down."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import PIPE
from typing import Any, NamedTuple

import numpy as np
import pytest
from aiohttp import web
from api_server import BLOCKS, until
from both_protocols import both, request
from http_client import opened

from serving.config import ServeConfig
from serving.engine.request import RequestResult
from serving.executors.cpu import CpuExecutor
from serving.observers import otel
from serving.observers.otel import SpanWriter, otlp_exporter
from serving.server import Server
from traces.errors import InputError
from traces.workload import Workload

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs strait-rl[otel]")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

ROOT = Path(__file__).resolve().parents[3]
TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, NOT_SAMPLED = (f"00-{TRACE_ID}-{PARENT_ID}-{flags}" for flags in ("01", "00"))


class Exported(InMemorySpanExporter):
    """Keeps spans after its shutdown, too."""

    def shutdown(self) -> None:
        pass

    def named(self, start: str) -> list[Any]:
        return [span for span in self.get_finished_spans() if span.name.startswith(start)]


class Collector:
    """What a collector took, and how it answers: by a status, or not before it is let go."""

    def __init__(self) -> None:
        self.taken: list[ExportTraceServiceRequest] = []
        self.status = 200
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.asked = 0

    async def take(self, call: web.Request) -> web.Response:
        self.asked += 1
        body = await call.read()
        await self.may_answer.wait()
        if self.status == 200:
            self.taken.append(ExportTraceServiceRequest.FromString(body))
        return web.Response(status=self.status)

    def spans(self) -> list[Any]:
        return [
            span
            for message in self.taken
            for resource in message.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


@asynccontextmanager
async def collecting() -> AsyncIterator[tuple[Collector, str]]:
    """A collector, and where it listens."""
    collector, app = Collector(), web.Application()
    app.router.add_post("/v1/traces", collector.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield collector, f"http://127.0.0.1:{runner.addresses[0][1]}"
    collector.may_answer.set()
    await runner.cleanup()


@pytest.fixture
def log() -> Iterator[list[str]]:
    """Lines as the process's log has them. Not caplog, which listens to loggers, too, that pass nothing on to the log."""
    lines: list[str] = []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: lines.append(f"{record.levelname} {record.getMessage()}")  # type: ignore[method-assign]
    handler.addFilter(lambda record: record.name != "aiohttp.access")
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield lines
    root.removeHandler(handler)
    root.setLevel(level)


async def off_the_loop(work: Any) -> None:
    if work is not None:
        await asyncio.get_running_loop().run_in_executor(None, work)


def met(number: int = 0, traceparent: str = "") -> RequestResult:
    return RequestResult(
        id=number, model="double", priority=0, outcome="met", arrival_ms=1.0, deadline_ms=51.0, offered_ms=1.0,
        start_ms=2.0, finish_ms=9.0, batch_id=number, batch_size=1, predicted_ms=6.0, traceparent=traceparent,
    )  # fmt: skip


async def test_spans_continue_the_clients_trace_over_both_protocols(executor: CpuExecutor) -> None:
    exported = Exported()
    async with both(executor) as clients:
        writer = SpanWriter(exported, 0.0)
        clients.plane.engine.observers.append(writer)
        await clients.over_http(request(id="mine", parameters={"priority": 1}), traceparent=SAMPLED)
        await clients.over_grpc(request(id="mine"), metadata=(("traceparent", SAMPLED),))
        writer.close()
    whole = exported.named("infer double")
    assert len(whole) == 4, "two items of two calls"
    assert {span.attributes["strait.priority"] for span in whole} == {"high", "low"}
    for span in whole:
        assert span.kind is SpanKind.SERVER and span.status.status_code is StatusCode.UNSET
        assert f"{span.context.trace_id:032x}" == TRACE_ID and f"{span.parent.span_id:016x}" == PARENT_ID
        said = span.attributes
        assert (said["strait.model"], said["strait.outcome"], said["strait.client_id"]) == ("double", "met", "mine")
        assert 5000 < said["strait.deadline_ms"] <= 10_000 and said["strait.batch.size"] >= 1
        assert 0 <= said["strait.queue_ms"] < said["strait.predicted_finish_ms"]
        children = [one for one in exported.get_finished_spans() if one.parent.span_id == span.context.span_id]
        queue, batch = sorted(children, key=lambda one: one.name, reverse=True)
        assert (queue.name, batch.name) == ("queue", "batch")
        assert (
            span.start_time == queue.start_time <= queue.end_time == batch.start_time < batch.end_time == span.end_time
        )
        phases = {event.name: event.timestamp for event in batch.events}
        assert list(phases) == ["h2d_start", "h2d_end", "exec_start", "exec_end", "d2h_end"]
        assert list(phases.values()) == sorted(phases.values()) and phases["exec_end"] <= span.end_time


async def test_every_request_has_one_span_however_it_ends(executor: CpuExecutor) -> None:
    exported = Exported()
    async with opened(executor) as client:
        writer, engine = SpanWriter(exported, 1.0), client.plane.engine
        engine.observers.append(writer)
        await client.infer("double")
        await client.infer("faulty", np.full((1, 4), -1, np.float32))
        await client.infer("double", timeout=1)
        blocking = [asyncio.ensure_future(engine.submit("slow", 0, 1e5, BLOCKS[0])) for _ in range(3)]
        await asyncio.sleep(0.01)
        blocking[-1].cancel()
        await asyncio.wait(blocking[-1:])
        offered = int(engine.offered.sum())
        await engine.stop(0.01)  # what is on the device fails, what is queued is dropped
        writer.close()
    spans = exported.named("infer")
    assert len(spans) == len({span.attributes["strait.request.id"] for span in spans}) == offered
    for span in spans:
        outcome = span.attributes["strait.outcome"]
        wrong = outcome in ("failed", "dropped")
        assert (span.status.status_code is StatusCode.ERROR) == wrong == bool(span.status.description)
        assert span.start_time <= span.end_time
    assert {"met", "dropped", "failed"} <= {span.attributes["strait.outcome"] for span in spans}
    assert len(exported.named("queue")) == offered > len(exported.named("batch"))


@pytest.mark.parametrize(
    ("traceparent", "ratio", "expected"),
    [
        (SAMPLED, 0.0, 1.0),
        (NOT_SAMPLED, 1.0, 0.0),
        ("", 0.0, 0.0),
        ("", 1.0, 1.0),
        ("", 0.3, 0.3),
        ("nonsense", 1.0, 1.0),
    ],
)
def test_callers_decide_what_is_exported_and_the_ratio_what_they_leave_open(
    traceparent: str, ratio: float, expected: float
) -> None:
    exported, n = Exported(), 1000
    writer = SpanWriter(exported, ratio)
    for number in range(n):
        writer.request_ended(met(number, traceparent))
    writer.close()
    assert len(exported.named("infer")) == pytest.approx(expected * n, abs=0 if expected in (0, 1) else 100)


async def test_a_collector_takes_spans_by_otlp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment=test")
    async with collecting() as (collector, url):
        writer = SpanWriter(otlp_exporter(url), 1.0, url)
        writer.request_ended(met(3))
        await off_the_loop(writer.close)
    spans = {span.name: span for span in collector.spans()}
    assert set(spans) == {"infer double", "queue", "batch"}
    whole = spans["infer double"]
    assert whole.end_time_unix_nano - whole.start_time_unix_nano == 8_000_000
    said = {one.key: one.value for one in whole.attributes}
    assert said["strait.predicted_finish_ms"].double_value == 7.0 and said["strait.request.id"].int_value == 3
    about = {one.key: one.value.string_value for one in collector.taken[0].resource_spans[0].resource.attributes}
    assert about["service.name"] == "strait" and about["deployment"] == "test"


async def test_a_collector_that_fails_costs_one_line_and_is_taken_up_again(
    log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(otel, "EXPORT_S", 0.01)
    async with collecting() as (collector, url):
        collector.status = 401
        writer = SpanWriter(otlp_exporter(url), 1.0, url)

        async def write(count: int) -> None:
            before = collector.asked
            for number in range(count):
                writer.request_ended(met(number))
            await off_the_loop(writer.save())
            await off_the_loop(writer._provider.force_flush)  # else some spans are sent after the collector has changed
            await until(lambda: collector.asked > before and writer.failed == (collector.status != 200))

        for _ in range(5):
            await write(5)
        collector.status = 200
        await write(5)
        assert [span.name for span in collector.spans()].count("infer double") == 1, (
            "one is tried, the rest is left out"
        )
        await write(5)
        await off_the_loop(writer.close)
    assert [span.name for span in collector.spans()].count("infer double") == 6
    assert [line.split()[0] for line in log] == ["ERROR", "INFO"], log
    assert f"traces to {url} cannot be written" in log[0] and "401" in log[0]


async def test_the_end_does_not_wait_for_a_collector_that_hangs(
    log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(otel, "CLOSE_S", 0.1)
    async with collecting() as (collector, url):
        collector.may_answer.clear()
        writer = SpanWriter(otlp_exporter(url), 1.0, url)
        writer.request_ended(met())
        await off_the_loop(writer.close)
        assert not collector.taken, "it has not answered yet"
    assert log == [f"WARNING traces to {url}: the last were not taken within 0.1 s and are lost"]


async def test_nobody_at_the_endpoint_costs_one_line(log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otel, "CLOSE_S", 0.1)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "1.5")  # time for one more try, and so for a reason
    async with collecting() as (_, url):
        pass
    writer = SpanWriter(otlp_exporter(url), 1.0, url)
    writer.request_ended(met())
    await off_the_loop(writer.save())
    await until(lambda: writer.failed)
    for _ in range(3):
        writer.request_ended(met())
        await off_the_loop(writer.save())
    await off_the_loop(writer.close)
    assert len(log) == 1 and f"traces to {url} cannot be written, serving goes on without: " in log[0]
    assert "refused" in log[0]


async def test_a_server_exports_what_it_served(tmp_path: Path) -> None:
    n, path = np.arange(60), tmp_path / "recorded.parquet"
    Workload(10.0 * n, n % 1, n % 2, np.full(60, 5000.0), ("double",)).save(path)
    (tmp_path / "models.yaml").write_text(
        "- {name: double, source: 'toy_models:double', input_shape: [4], compiled: false}"
    )
    async with collecting() as (collector, url):
        flags = (f"--models={tmp_path / 'models.yaml'}", f"--replay={path}", f"--otel-endpoint={url}", "--otel-ratio=1")
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(ROOT / "serve.py"), *flags, "--policy=edf", "--streams=2", stderr=PIPE, stdout=PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers")])},
        )  # fmt: skip
        out, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    assert f"traces go to {url}: those that clients record, and 1 of the others" in errors.decode()
    outcomes = json.loads(out.splitlines()[-1])["outcomes"]
    said = [
        {one.key: one.value for one in span.attributes} for span in collector.spans() if span.name == "infer double"
    ]
    for outcome, count in outcomes.items():
        assert sum(one["strait.outcome"].string_value == outcome for one in said) == count


async def test_requests_wait_for_no_collector(executor: CpuExecutor, gate: threading.Event) -> None:
    """Spans are made and sent on other threads: with a collector that hangs, requests go on, and more than are exported end."""
    async with collecting() as (collector, url), opened(executor) as client:
        collector.may_answer.clear()
        writer = SpanWriter(otlp_exporter(url), 1.0, url)
        client.plane.engine.observers.append(writer)
        for _ in range(3):
            assert (await client.infer())[0] == 200
            await off_the_loop(writer.save())
        assert not collector.taken
        collector.may_answer.set()
        await off_the_loop(writer.close)
        assert [span.name for span in collector.spans()].count("infer double") == 6


def test_more_requests_than_are_exported_are_counted(log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otel, "MOST_REQUESTS", 10)
    exported = Exported()
    writer = SpanWriter(exported, 1.0)
    for number in range(25):
        writer.request_ended(met(number))
    writer.close()
    assert len(exported.named("infer")) == 10 and "15 more requests ended than are exported" in log[0]


class Case(NamedTuple):
    """Settings, and what is wrong about them."""

    settings: dict[str, Any]
    message: str


@pytest.mark.parametrize(
    "case",
    [
        Case({"otel_endpoint": "localhost:4318"}, "--otel_endpoint localhost:4318: expected the URL"),
        Case({"otel_endpoint": "http://"}, "--otel_endpoint http://: expected the URL"),
        Case({"otel_ratio": 1.5}, "--otel_ratio: 1.5; it must be from 0 to 1"),
        Case({"otel_endpoint": "http://a:1", "peers": ["b:2"]}, "give it to the replicas"),
    ],
    ids=str,
)
def test_settings_of_traces_that_are_wrong_are_named(case: Case) -> None:
    with pytest.raises(InputError, match=case.message):
        Server(ServeConfig(models="lstm", profile="cpu2", port=0, **case.settings))


def test_without_the_package_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(InputError, match=r"--otel_endpoint: .*install strait-rl\[otel\]"):
        otlp_exporter("http://localhost:4318")


def test_the_path_of_traces_may_be_given_or_not() -> None:
    for given in ("http://a:1", "http://a:1/", "http://a:1/v1/traces"):
        assert otlp_exporter(given)._endpoint == "http://a:1/v1/traces"
