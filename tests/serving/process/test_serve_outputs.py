"""What a server writes: recordings, timelines, metrics, TensorBoard, logs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import prometheus_client
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.registry import Collector

from agents.evaluation import metric
from agents.policies.registry import make_policy
from envs.drawing.trace_events import BatchRow, RequestRow, trace_events
from envs.profiles.delays import measured_delays
from envs.profiles.fit import fit
from envs.profiles.profile import Profile
from serving.engine.engine import Engine
from serving.engine.request import BatchRecord, RequestResult, result_table
from serving.executors.cpu import CpuExecutor
from serving.models.load import load_model
from serving.models.served import ModelSpec
from serving.observers import recorder as recording
from serving.observers import timeline
from serving.observers.explain import describe_candidates
from serving.observers.logs import JsonFormatter, RequestLog
from serving.observers.prometheus import SECONDS, Histogram, Metrics
from serving.observers.recorder import Recorder
from serving.observers.report import result_of
from serving.observers.tensorboard import LAYOUT, TensorBoardWriter
from serving.observers.timeline import TimelineWriter
from serving.profiling.calibrate import calibrated, machine_of, measure_solo
from traces.machine import ModelInfo
from traces.measurements import Measurements, Phases
from traces.workload import Workload

NAMES = ("wide", "double")
X = np.arange(4, dtype=np.float32)


@pytest.fixture(scope="module")
def measured() -> Any:
    """An executor, its machine, its solo runs and the profile made of these."""
    executor = CpuExecutor(2)
    for name in NAMES:
        executor.load(load_model(ModelSpec(name, f"toy_models:{name}", (4,), "float32", compiled=False)))
    runs = measure_solo(executor, NAMES, (1, 2, 4))
    models = [ModelInfo(**executor.models[name].describe()) for name in NAMES]
    machine = machine_of(executor, models, (1, 2, 4))
    yield SimpleNamespace(
        executor=executor, machine=machine, runs=runs, profile=calibrated(Profile.load("cpu2"), machine, runs)
    )
    executor.close()


def ended(number: int = 0, **changes: Any) -> RequestResult:
    t = float(number)
    times = {"arrival_ms": t + 1, "deadline_ms": t + 51, "offered_ms": t + 1, "start_ms": t + 2, "finish_ms": t + 9}
    batch = {"batch_id": number, "batch_size": 1, "predicted_ms": 6.0}
    return RequestResult(**{"id": number, "model": "wide", "priority": 0, "outcome": "met"} | times | batch | changes)


def batch(number: int = 0, stream: int = 0) -> BatchRecord:
    t = 10.0 * number
    return BatchRecord(
        batch_id=number,
        stream=stream,
        model="wide",
        priority=0,
        batch_size=1,
        n_high=1,
        error=None,
        phases=Phases(t, t + 1, t + 2, t + 2, t + 7, t + 8),
        decided_ms=t,
        seen_ms=t + 8,
        predicted_ms=6.0,
        co_runners=0,
    )


def test_calibration_measures_what_the_shipped_profile_does_not_know(measured: Any) -> None:
    profile = measured.profile
    assert profile.models == NAMES and profile.batch_sizes == (1, 2, 4)
    assert len(measured.runs) == 2 * 3 * 5
    assert profile.solo_ms[0, 0] > profile.solo_ms[1, 0] > 0, "the model that computes takes longer"
    assert not profile.pair.any()


def test_calibration_keeps_the_interference_of_known_models(measured: Any) -> None:
    base = Profile.load("cpu2")
    models = tuple(replace(m, name=name) for m, name in zip(measured.machine.models, ("bert", "mine")))
    machine = replace(measured.machine, models=models)
    names = dict(zip(NAMES, ("bert", "mine")))
    runs = [replace(run, model=names[run.model]) for run in measured.runs]
    pair = calibrated(base, machine, runs).pair
    at = base.index("bert") * len(base.batch_sizes)
    np.testing.assert_array_equal(pair[:3, :3], base.pair[at : at + 3, at : at + 3])
    assert not pair[3:].any() and not pair[:, 3:].any()


def test_a_device_without_known_peaks_gives_a_profile_of_numbers(measured: Any) -> None:
    unknown = replace(measured.machine.device, peak_gflops=0.0, peak_gbps=0.0)
    models = tuple(replace(m, flops_per_item=0.0) for m in measured.machine.models)  # those that compute nothing
    with np.errstate(all="raise"):
        profile = calibrated(
            Profile.load("cpu2"), replace(measured.machine, device=unknown, models=models), measured.runs
        )
    assert not profile.demand[:, :, :2].any() and np.isfinite(profile.demand).all()


async def served(measured: Any, *observers: Any, requests: int = 40) -> Engine:
    engine = Engine(measured.executor, measured.profile, make_policy("edf"))
    engine.observers += observers
    await engine.start()
    for _ in range(requests // 4):
        await asyncio.gather(
            engine.submit_all("wide", 0, 1e5, [X]),
            engine.submit_all("wide", 1, 1e5, [X]),
            engine.submit_all("double", 1, 1e5, [X, X]),
        )
    await engine.stop()
    return engine


async def test_a_recording_is_read_by_the_rest_of_the_project(measured: Any, tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "run", lambda: measured.machine, lambda: measured.runs)
    await served(measured, recorder)
    for stream in (0, 1):  # side by side for certain, which real batches are by chance
        recorder.batch_ended(batch(100_000, stream=stream))
    recorder.flush()
    part = tmp_path / "run" / "0000"
    measurements = Measurements.load(part)
    kinds = measurements.batches["kind"].value_counts()
    assert kinds["solo"] == len(measured.runs) and kinds["live"] >= 20
    assert fit(measurements, "again").models == NAMES
    delays = measured_delays(measurements)
    assert delays is not None and delays.decision_ms > 0 and delays.completion_ms[0] > 0
    workload = Workload.load(part / "arrivals.parquet", NAMES)
    assert len(workload) == 40
    assert set(workload.priority.tolist()) == {0, 1}
    assert workload.deadline_ms == pytest.approx(1e5)
    recorder.close()
    later = Recorder(tmp_path / "run", lambda: measured.machine, lambda: measured.runs)
    later.request_ended(ended())
    later.close()
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["0000", "0001"], "earlier parts are kept"


def test_two_servers_that_record_into_one_folder_have_parts_of_their_own(measured: Any, tmp_path: Path) -> None:
    both = [Recorder(tmp_path, lambda: measured.machine, lambda: measured.runs) for _ in range(2)]
    for n, recorder in zip((3, 7), both, strict=True):
        for number in range(n):
            recorder.request_ended(ended(number))
    for recorder in (*both, *both):
        recorder.close()
    assert [len(Workload.load(p / "arrivals.parquet", NAMES)) for p in sorted(tmp_path.iterdir())] == [3, 7]


def test_a_recording_has_requests_as_the_engine_saw_them(measured: Any, tmp_path: Path) -> None:
    """A replay's timer rang late, for one request after its deadline; deadlines stay where they are."""
    recorder = Recorder(tmp_path, lambda: measured.machine, lambda: measured.runs)
    for number, offered_ms in enumerate((1.0, 3.5, 60.0)):
        recorder.request_ended(ended(number, arrival_ms=1.0, deadline_ms=51.0, offered_ms=offered_ms))
    recorder.close()
    workload = Workload.load(tmp_path / "0000" / "arrivals.parquet", NAMES)
    assert workload.arrival_ms.tolist() == [1.0, 3.5, 60.0]
    assert workload.deadline_ms.tolist() == pytest.approx([50.0, 47.5, 1e-3])


def test_a_recording_is_rotated(measured: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "PART_ROWS", 10)
    recorder = Recorder(tmp_path, lambda: measured.machine, lambda: measured.runs)
    for i in range(25):
        recorder.request_ended(ended(i))
        recorder.batch_ended(batch(i))
        if i % 5 == 4:
            recorder.flush()
    recorder.close()
    parts = sorted(tmp_path.iterdir())
    assert [len(Workload.load(p / "arrivals.parquet", NAMES)) for p in parts] == [10, 10, 5]
    assert all((Measurements.load(p).batches["kind"] == "live").sum() in (5, 10) for p in parts)


def test_a_full_disk_is_logged_once_and_recording_goes_on_later(
    measured: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(tmp_path, lambda: measured.machine, lambda: measured.runs)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Workload, "save", full)
        for i in range(3):
            recorder.request_ended(ended(i))
            recorder.flush()
    assert caplog.text.count("No space left on device") == 1
    recorder.request_ended(ended(3))
    recorder.flush()
    assert len(Workload.load(tmp_path / "0000" / "arrivals.parquet", NAMES)) == 4, "nothing was lost"


def test_a_timeline_shows_queues_copies_executions_and_deadlines() -> None:
    requests = [
        RequestRow(1, "a", 0, "met", 0.0, 2.0, 9.0, 50.0, 7),
        RequestRow(2, "a", 1, "dropped", 1.0, math.nan, 4.0, 4.5),
        RequestRow(3, "b", 1, "cancelled", 1.0, math.nan, 3.0, 4.5),
    ]
    batches = [BatchRow(7, 1, 0, "a", 1, 1, Phases(2.0, 2.5, 3.0, 3.0, 8.0, 9.0), 6.0)]
    events = trace_events(requests, batches)
    json.dumps(events, allow_nan=False)
    times = [event["ts"] for event in events]
    assert times == sorted(times)
    spans = [(e["name"], e["ts"], e["dur"]) for e in events if e["ph"] == "X"]
    assert spans == [("copy in", 2500, 500), ("a x1", 3000, 5000), ("copy back", 8000, 1000)]
    marks = {e["args"]["request"]: (e["name"], e["ts"]) for e in events if e["ph"] == "i"}
    assert marks == {1: ("deadline met", 9000), 2: ("deadline missed", 4000), 3: ("cancelled", 3000)}
    begins = {e["id"]: e["ts"] for e in events if e["ph"] == "b"}
    ends = {e["id"]: e["ts"] for e in events if e["ph"] == "e"}
    assert begins == {1: 0, 2: 1000, 3: 1000} and ends == {1: 2000, 2: 4000, 3: 3000}
    queued = [e["args"] for e in events if e["ph"] == "C"]
    assert queued[-1] == {"high": 0, "low": 0} and {"high": 1, "low": 2} in queued
    names = {e["args"]["name"] for e in events if e["ph"] == "M"}
    assert names == {"queues", "device", "high priority", "low priority", "stream 1"}


async def test_a_live_timeline_holds_every_request_and_batch(measured: Any, tmp_path: Path) -> None:
    writer = TimelineWriter(tmp_path / "timeline.json")
    engine = await served(measured, writer)
    writer.close()
    events = json.loads((tmp_path / "timeline.json").read_text())["traceEvents"]
    assert sum(e["ph"] == "i" for e in events) == 40
    assert sum(e["ph"] == "X" for e in events) == 3 * engine.batches


async def test_a_timeline_is_written_while_serving_and_the_end_adds_only_the_rest(
    measured: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timeline, "HOLD_MS", 0.0)
    whole, parts = TimelineWriter(tmp_path / "whole.json"), TimelineWriter(tmp_path / "parts.json")
    assert parts.save() is None
    for count in (40, 80):
        await served(measured, whole, parts)
        save = parts.save()
        assert save is not None and parts.save() is None, "written once"
        save()
        read = json.loads(parts.path.read_text())["traceEvents"]
        assert sum(e["ph"] == "i" for e in read) == count
    size = parts.path.stat().st_size
    whole.close()
    parts.close()
    assert parts.path.stat().st_size < size + 1000
    together, apart = (json.loads(writer.path.read_text())["traceEvents"] for writer in (whole, parts))

    def spans(events: list[dict[str, Any]]) -> list[str]:
        return sorted(json.dumps(event) for event in events if event["ph"] not in "MC")

    assert spans(together) == spans(apart)
    assert [e["args"] for e in apart if e["ph"] == "C"][-1] == {"high": 0, "low": 0}


async def test_a_timeline_that_is_full_goes_on_in_another_file(
    measured: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timeline, "KEEP", 40)
    writer = TimelineWriter(tmp_path / "timeline.json")
    for _ in range(2):
        await served(measured, writer)
        save = writer.save()
        assert save is not None
        save()
    writer.close()
    first = json.loads((tmp_path / "timeline.1.json").read_text())["traceEvents"]
    assert sum(e["ph"] == "i" for e in first) == 40


def test_a_timeline_that_cannot_be_written_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    TimelineWriter(tmp_path / "file" / "timeline.json").close()
    assert "cannot be written" in caplog.text


async def test_metrics_count_what_ended(measured: Any) -> None:
    engine = Engine(measured.executor, measured.profile, make_policy("edf"))
    metrics = Metrics(engine)
    engine.observers.append(metrics)
    await engine.start()
    await engine.submit_all("wide", 0, 1e5, [X] * 5)
    await engine.submit("double", 1, 1e-6, X)
    body, kind = metrics.render()
    await engine.stop()
    text = body.decode()
    assert kind.startswith("text/plain")
    assert 'strait_requests_total{bucket="",model="wide",outcome="met",priority="high",reason=""} 5.0' in text
    assert 'outcome="dropped",priority="low",reason="deadline out of reach"} 1.0' in text
    assert 'strait_request_latency_seconds_count{bucket="",model="wide",priority="high"} 5.0' in text
    assert 'strait_queue_length{bucket="",model="double",priority="low"} 0.0' in text
    assert f"strait_decision_seconds_count {float(engine.guard.decisions)}" in text
    assert "strait_batch_predicted_over_actual_count" in text and "strait_streams 2.0" in text
    assert "process_resident_memory_bytes" in text and 'strait_build_info{python="3.' in text


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from([*SECONDS, 0.0, 1e-4, 0.3, 1e3]))))
def test_a_histogram_is_written_as_the_librarys_own_is(values: list[tuple[str, float]]) -> None:
    own, theirs = CollectorRegistry(), CollectorRegistry()
    histogram = Histogram("x_seconds", "Text.", ("label",), SECONDS)
    library = prometheus_client.Histogram("x_seconds", "Text.", ("label",), buckets=SECONDS, registry=theirs)
    for label, value in values:
        histogram.observe((label,), value)
        library.labels(label).observe(value)

    class One(Collector):
        def collect(self) -> Iterable[Metric]:
            return [histogram.family()]

    own.register(One())
    lines = [
        [line for line in prometheus_client.generate_latest(one).decode().splitlines() if "_created" not in line]
        for one in (own, theirs)
    ]
    assert sorted(lines[0]) == sorted(lines[1])


async def test_tensorboard_has_the_shared_tags_and_a_layout(measured: Any, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    engine = Engine(measured.executor, measured.profile, make_policy("edf"))
    writer = TensorBoardWriter(tmp_path, engine, {"policy": "edf"})
    engine.observers.append(writer)
    await engine.start()
    await engine.submit_all("wide", 0, 1e5, [X] * 5)
    writer.write()
    writer.write()
    await engine.stop()
    writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    scalars = set(events.Tags()["scalars"])
    assert [event.value for event in events.Scalars(metric.VIOLATION_HIGH)] == [0.0], (
        "no point for a time without requests"
    )
    assert [event.value for event in events.Scalars(metric.GOODPUT_RPS)][1:] == [0.0, 0.0]
    shown = {tag for charts in LAYOUT.values() for _, chart in charts.items() for tag in chart[1]}
    assert shown - scalars <= {metric.LATENCY_LOW_P99_MS}, "nothing of low priority was answered"
    assert list(LAYOUT)[0] == "Are deadlines met?"


def test_results_add_up() -> None:
    ends = ["met", "met", "late", "dropped", "failed", "cancelled"]
    results = [ended(i, outcome=name, priority=i % 2) for i, name in enumerate(ends)]
    result = result_of(result_table(results), {"policy": "edf"}, [10.0])
    assert result["offered"] == sum(result["outcomes"].values()) == 6
    assert result["outcomes"]["met"] == 2
    json.dumps(result, allow_nan=False)


def test_logs_are_json_with_request_ids(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "serving.requests"):
        RequestLog().request_ended(ended(7))
        RequestLog().request_ended(ended(8, outcome="failed", reason="fault", message="it\nbroke"))
    lines = [json.loads(JsonFormatter().format(entry)) for entry in caplog.records]
    assert [line["request_id"] for line in lines] == [7, 8]
    assert [line["level"] for line in lines] == ["debug", "warning"]
    assert lines[1]["reason"] == "fault" and lines[1]["message"].startswith("request 8 of wide failed after 8.0 ms")


def test_a_decision_is_explained_in_one_line(measured: Any) -> None:
    logits = np.full(2 * 2 * 3 + 1, -np.inf)
    logits[[1, 7, 12]] = [2.0, 1.0, 0.0]
    line = describe_candidates(logits, measured.profile.tables(), NAMES)
    assert line == "high wide x2 66.5 %, low wide x2 24.5 %, defer 9.0 %"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_under_the_log_raises_nothing() -> None:
    from serving.observers.logs import _Handler

    stream = open("/dev/full", "w")  # noqa: SIM115 (closing it fails, as it should)
    handler = _Handler(stream)
    handler.emit(logging.makeLogRecord({"msg": "hello"}))
    handler.emit(logging.makeLogRecord({"msg": "hello"}))
    with contextlib.suppress(OSError):
        stream.close()
