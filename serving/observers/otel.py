"""Exports a span per request to an OpenTelemetry collector (``serve.py --otel_endpoint``). Needs the extra `otel`.

A span of the SDK takes longer to make than a decision of the scheduler, and as long again to encode. So the engine's loop only
keeps what ended; every few seconds a thread makes the spans (`serving.observers.output.saving`), and the SDK's own thread
sends them.
"""

from __future__ import annotations

import functools
import logging
import math
import random
import re
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from envs.scheduling.state import PRIORITIES
from serving.engine.request import BatchRecord, RequestResult
from serving.models.tensors import split_bucket
from serving.observers.output import Output
from traces.errors import InputError

log = logging.getLogger("serving")

MOST_REQUESTS = 5000  # exported per write; what a collector and a core bear, whatever clients ask for
QUEUED_SPANS = 4 * MOST_REQUESTS  # three spans per request, and some that are left from before
EXPORT_S = 1.0
CLOSE_S = 2.0
TRACES_PATH = "/v1/traces"
# W3C trace context: version, trace id, parent id, flags, of which the lowest bit says that the caller records the trace.
TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-([0-9a-f]{2})")


def otlp_exporter(endpoint: str) -> Any:
    """An exporter (``opentelemetry.sdk.trace.export.SpanExporter``) that posts to a collector; nothing is connected yet.

    Args:
        endpoint: of OTLP over HTTP, with or without the path of traces.

    Raises:
        InputError: it is no URL, or the packages are not installed.
    """
    url = urlsplit(endpoint)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise InputError(f"--otel_endpoint {endpoint}: expected the URL of OTLP over HTTP, e.g. http://localhost:4318")
    try:
        import opentelemetry.sdk.trace  # noqa: F401
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise InputError("--otel_endpoint: the package opentelemetry is not here; install strait-rl[otel]") from None
    base = endpoint.rstrip("/")
    return OTLPSpanExporter(base if base.endswith(TRACES_PATH) else base + TRACES_PATH)


class Row(NamedTuple):
    """A request that ended.

    Attributes:
        result: without its outputs.
        batch: its batch; None if it was never executed, or only in a part of its batch.
        end_ns: when it ended, by the clock of the machine.
    """

    result: RequestResult
    batch: BatchRecord | None
    end_ns: int

    def at(self, time_ms: float) -> int:
        """A time of the engine's clock by that of the machine, in ns."""
        return self.end_ns - round((self.result.finish_ms - time_ms) * 1e6)


class SpanWriter(Output):
    """Observes an engine, and exports a span per request, with child spans of its time in the queue and in its batch.

    Requests that carry a trace context are exported if their caller records the trace, as children of its span. A collector
    that does not answer costs one line of the log; until it answers again one request per write is tried.

    Args:
        exporter: where spans go: `otlp_exporter`, or another of OpenTelemetry's.
        ratio: share of requests without a trace context that are exported.
        where: names the collector in the log.
    """

    def __init__(self, exporter: Any, ratio: float, where: str = "the collector") -> None:
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON

        super().__init__(f"traces to {where}")
        self._ratio = ratio
        self._random = random.Random()
        self._rows: list[Row] = []
        self._left_out = 0
        self._batches: dict[int, BatchRecord] = {}
        self._exporter = _ReportingExporter(exporter, self.written)
        # The variables OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win.
        resource = Resource.create({"service.name": "strait"}).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(ALWAYS_ON, resource, shutdown_on_exit=False)
        queue = BatchSpanProcessor(self._exporter, QUEUED_SPANS, schedule_delay_millis=1e3 * EXPORT_S)  # type: ignore[arg-type]
        self._provider.add_span_processor(queue)
        self._tracer = self._provider.get_tracer("strait")

    # On the engine's loop.

    def batch_ended(self, batch: BatchRecord) -> None:
        self._batches[batch.stream] = batch  # whose requests end before the next one on its stream does

    def request_ended(self, result: RequestResult) -> None:
        if self._sampled(result.traceparent):
            if len(self._rows) < MOST_REQUESTS:
                self._rows.append(Row(replace(result, outputs=None), self._batch_of(result), time.time_ns()))
            else:
                self._left_out += 1

    def _sampled(self, traceparent: str) -> bool:
        caller = TRACEPARENT.match(traceparent) if traceparent else None
        return self._random.random() < self._ratio if caller is None else bool(int(caller[1], 16) & 1)

    def _batch_of(self, result: RequestResult) -> BatchRecord | None:
        for batch in self._batches.values():
            # Of a batch that was split, the record is of one part, and not known to be of this request's.
            if batch.batch_id == result.batch_id and batch.batch_size == result.batch_size:
                return batch
        return None

    def save(self) -> Callable[[], None] | None:
        if self._left_out:
            log.warning("%d more requests ended than are exported; lower --otel_ratio", self._left_out)
        rows, self._rows, self._left_out = self._rows, [], 0
        return functools.partial(self._make_spans, rows[-1:] if self.failed else rows) if rows else None

    # On other threads.

    def _make_spans(self, rows: Sequence[Row]) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        extract, start = TraceContextTextMapPropagator().extract, self._tracer.start_span
        for row in rows:
            result = row.result
            caller = extract({"traceparent": result.traceparent})
            begin_ns = row.at(result.arrival_ms)
            name = f"infer {split_bucket(result.model)[0]}"
            span = start(name, caller, SpanKind.SERVER, request_attributes(result), start_time=begin_ns)
            dispatch_ns = row.end_ns if math.isnan(result.start_ms) else row.at(result.start_ms)
            inside = set_span_in_context(span)
            start("queue", inside, start_time=begin_ns).end(dispatch_ns)
            if not math.isnan(result.start_ms):
                self._make_batch_span(row, inside, dispatch_ns)
            if result.outcome in ("failed", "dropped"):
                span.set_status(Status(StatusCode.ERROR, result.message or result.reason))
            span.end(row.end_ns)

    def _make_batch_span(self, row: Row, inside: Any, dispatch_ns: int) -> None:
        """From dispatch to the end, with the phases on the device as events."""
        result, batch = row.result, row.batch
        attributes = {"strait.batch.id": result.batch_id, "strait.batch.size": result.batch_size}
        if batch is not None:
            attributes |= {"strait.batch.stream": batch.stream, "strait.batch.co_runners": batch.co_runners}
        span = self._tracer.start_span("batch", inside, attributes=attributes, start_time=dispatch_ns)
        if batch is not None:
            for phase, time_ms in batch.phases._asdict().items():
                if phase != "dispatch_ms":  # which is the beginning of the span
                    span.add_event(phase.removesuffix("_ms"), timestamp=row.at(time_ms))
        span.end(row.end_ns)

    def close(self) -> None:
        if self.failed:
            self._exporter.shutdown()  # the collector is not waited for again
        rest = self.save()
        closing = threading.Thread(target=self._close, args=(rest,), daemon=True, name="close-traces")
        closing.start()
        closing.join(CLOSE_S)
        if closing.is_alive():
            log.warning("%s: the last were not taken within %g s and are lost", self._what, CLOSE_S)
            self._exporter.shutdown()

    def _close(self, rest: Callable[[], None] | None) -> None:
        if rest is not None:
            rest()
        self._provider.shutdown()


def request_attributes(result: RequestResult) -> dict[str, str | int | float]:
    """What a request's span says beside its times; those of times are ms after the arrival."""
    model, bucket = split_bucket(result.model)
    attributes: dict[str, str | int | float] = {
        "strait.model": model,
        "strait.priority": PRIORITIES[result.priority],
        "strait.deadline_ms": result.deadline_ms - result.arrival_ms,
        "strait.outcome": result.outcome,
        "strait.request.id": result.id,
    }
    texts = {"strait.bucket": bucket, "strait.reason": result.reason, "strait.client_id": result.client_id}
    attributes |= {name: text for name, text in texts.items() if text}
    if result.batch_id >= 0:
        attributes["strait.batch.size"] = result.batch_size
        attributes["strait.queue_ms"] = result.queue_ms
        attributes["strait.predicted_finish_ms"] = result.queue_ms + result.predicted_ms
    return attributes


class _ReportingExporter(logging.Handler):
    """A span exporter that says once that it fails, in place of the SDK, which logs each attempt.

    It handles what the SDK logs, to know why, and passes nothing on.

    Args:
        exporter: sends the spans.
        written: from `Output`.
    """

    def __init__(self, exporter: Any, written: Callable[[], AbstractContextManager[None]]) -> None:
        super().__init__()
        self._exporter = exporter
        self._written = written
        self._reason = ""
        self._is_shut = False
        logger = logging.getLogger("opentelemetry")
        logger.propagate = False
        logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the first message of an export: those that follow are about trying again."""
        self._reason = self._reason or record.getMessage()

    def export(self, spans: Sequence[Any]) -> None:
        """Send spans; on the SDK's thread."""
        if self._is_shut:
            return
        self._reason = ""
        with self._written():
            if self._exporter.export(spans).name != "SUCCESS":
                raise ConnectionError(self._reason or "the collector does not take them")

    def shutdown(self) -> None:
        """Try no more, and end what is being tried."""
        if not self._is_shut:
            self._is_shut = True
            self._exporter.shutdown()
