"""Faults in a real server process: no request is lost or answered twice, and the server lives on or stops cleanly."""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fault_server import ROOT, Served, command, environment, infer_body, served

from agents.learned.policy_file import shapes, write_policy
from envs.simulation.config import EnvConfig

pytestmark = pytest.mark.slow
TOYS = {"double": "toy_models", "slow": "toy_models", "faulty": "toy_models", "nan": "fault_models"}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server that all these faults happen to, one after the other."""
    with served(tmp_path_factory.mktemp("faults"), TOYS) as server:
        yield server
        assert server.stop() == 0


@pytest.fixture
def server(running: Served) -> Iterator[Served]:
    """The server; it must be well after each fault."""
    yield running
    running.is_well()


def test_a_model_that_raises_answers_500_and_the_next_request_is_served(server: Served) -> None:
    status, answer = server.infer("faulty", 666.0)
    assert status == 500 and "cursed" in answer["error"]


def test_nan_is_an_answer_like_any_other(server: Served) -> None:
    status, answer = server.infer("nan", 1.0)
    assert status == 200 and np.isnan(answer["outputs"][0]["data"]).all()


def test_a_model_that_ends_the_program_answers_500_and_the_next_request_is_served(server: Served) -> None:
    for _ in range(4):
        status, answer = server.infer("faulty", 668.0)
        assert status == 500 and "SystemExit" in answer["error"]


def test_a_batch_that_runs_out_of_memory_is_answered_in_parts(server: Served) -> None:
    with ThreadPoolExecutor(2) as pool:  # both streams are busy, so that the items wait and run as one batch
        blockers = [pool.submit(server.infer, "slow", 300.0) for _ in range(2)]
        server.until(lambda: server.metrics()["strait_streams_busy"] == 2)
        assert server.infer("faulty", 667.0, 1.0, 1.0, 1.0)[0] == 200
        assert [b.result()[0] for b in blockers] == [200, 200]


def test_a_model_that_crashes_the_process_is_named_by_its_signal(tmp_path: Path) -> None:
    with served(tmp_path, {"crash": "fault_models"}) as server:
        with pytest.raises(OSError):
            server.infer("crash", 669.0)
        assert server.process.wait(30) == -signal.SIGSEGV
        assert server.logged("Segmentation fault") and server.logged("fault_models.py")


def test_a_second_sigterm_ends_the_process_whatever_holds_pythons_lock(tmp_path: Path) -> None:
    with served(tmp_path, {"crash": "fault_models"}) as server:
        _send(server, "crash", 670.0)
        time.sleep(1.0)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == -signal.SIGTERM


def test_clients_that_leave_are_cancelled_in_the_queue_and_in_flight(server: Served) -> None:
    before = server.metrics()
    leaving = [_send(server, "slow", 400.0) for _ in range(2)]
    server.until(lambda: server.metrics()["strait_streams_busy"] == 2)
    queued = [_send(server, "double", 1.0) for _ in range(3)]
    server.until(lambda: server.metrics()["strait_queue_length"] == 3)
    for client in queued:
        client.close()
    server.until(lambda: server.metrics()["strait_queue_length"] == 0)
    assert server.metrics()["ended_cancelled"] - before["ended_cancelled"] == 3, "at once, not when a stream is free"
    for client in leaving:
        client.close()
    server.until(lambda: server.metrics()["ended_cancelled"] - before["ended_cancelled"] == 5)


def test_slow_and_half_open_clients_do_not_delay_others(server: Served) -> None:
    idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(50)]
    slow = [_send(server, "double", 1.0, part=0.6) for _ in range(20)]
    half = _send(server, "double", 1.0)
    half.shutdown(socket.SHUT_WR)  # it sends no more, and its request is whole
    offered = server.metrics()["strait_requests_offered"]
    assert server.infer("double", 1.0)[0] == 200
    assert server.metrics()["strait_requests_offered"] <= offered + 1, "half a request is none"
    for client in (*idle, *slow, half):
        client.close()


def test_a_second_server_on_the_port_ends_with_one_line_and_the_first_goes_on(server: Served, tmp_path: Path) -> None:
    flags = (f"--port={server.port}", f"--record={tmp_path / 'run'}")
    ended = _ended(command(tmp_path, {"double": "toy_models"}, *flags))
    assert ended.returncode == 2 and "cannot listen" in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr and not (tmp_path / "run").exists()


def test_all_that_was_asked_was_answered_and_counted_once(server: Served) -> None:
    before = server.metrics()
    counted = server.answers.copy()
    with ThreadPoolExecutor(16) as pool:
        jobs = [pool.submit(server.infer, ("double", "faulty")[i % 2], (1.0, 666.0)[i % 4 == 3]) for i in range(200)]
        for job in jobs:
            job.result()
    seen = server.metrics()
    answered = server.answers - counted
    assert sum(answered.values()) == 200 == seen["strait_requests_total"] - before["strait_requests_total"]
    assert answered[500] == seen["ended_failed"] - before["ended_failed"] >= 50
    late = seen["ended_late"] - before["ended_late"]
    assert answered[200] == seen["ended_met"] - before["ended_met"] + late


def test_all_faults_at_once(server: Served) -> None:
    """Models that raise, run out of memory and end their threads, deadlines out of reach, and clients that leave."""
    kinds = [("double", 1.0), ("faulty", 666.0), ("faulty", 667.0), ("faulty", 668.0), ("slow", 20.0), ("nan", 1.0)]

    def ask(i: int) -> int:
        model, first = kinds[i % len(kinds)]
        if i % 17 == 0:
            _send(server, model, first).close()
        return server.infer(model, first, priority=1 + i % 2, timeout_ms=(20_000.0, 30.0)[i % 11 == 0])[0]

    with ThreadPoolExecutor(24) as pool:
        statuses = set(pool.map(ask, range(400)))
    assert {200, 500} <= statuses <= {200, 500, 503, 504}
    server.until(lambda: (m := server.metrics())["strait_requests_offered"] == m["strait_requests_total"])


@pytest.mark.parametrize("fault", ["nan_policy", "slow_policy"])
def test_a_faulty_policy_is_replaced_by_strait_counted_and_logged(tmp_path: Path, fault: str) -> None:
    with served(tmp_path, {"double": "toy_models", fault: "fault_models", "jumping_clock": "fault_models"}) as server:
        for _ in range(12):
            assert server.infer("double", 1.0)[0] == 200
        seen = server.metrics()
        assert seen["strait_policy_replaced"] == 1 and seen["strait_policy_fallbacks"] > 0
        if fault == "slow_policy":
            assert seen["strait_policy_overruns"] >= 5
        assert server.logged("is replaced by strait")
        # The wall clock of this server jumps by an hour at each look, too: nothing depends on it.
        assert seen["ended_met"] == 12
        assert server.infer("double", 1.0, timeout_ms=0.001)[0] == 504
        server.is_well()
        assert server.stop() == 0


def test_a_corrupt_checkpoint_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(os.urandom(1000))
    ended = _ended(command(tmp_path, {"double": "toy_models"}, f"--policy={tmp_path / 'bad.safetensors'}"))
    assert ended.returncode == 2 and len(ended.stderr.strip().splitlines()) == 1


def test_a_corrupt_checkpoint_is_not_loaded_and_the_old_one_stays(tmp_path: Path) -> None:
    path = tmp_path / "policy.safetensors"
    # Scores all candidates alike, and so takes the first.
    flat = {name: np.full(shape, float(name.endswith("_std")), np.float32) for name, shape in shapes(4).items()}
    write_policy(path, flat, EnvConfig(drop=0.0, defer=0.3), {})
    with served(tmp_path, {"double": "toy_models"}, f"--policy={path}") as server:
        good = path.read_bytes()
        for n, bad in enumerate((good[:100] + bytes(100), b"", good.replace(b"F32", b"F64")), 1):
            path.write_bytes(bad)
            server.process.send_signal(signal.SIGHUP)
            server.until(lambda n=n: server.log.read_text().count("policy is not reloaded") == n)
        server.is_well()
        path.write_bytes(good)
        server.process.send_signal(signal.SIGHUP)
        server.until(lambda: server.logged("was reloaded"))
        server.is_well()
        assert server.metrics()["strait_policy_replaced"] == 0
        assert server.stop() == 0


def test_a_full_disk_costs_what_is_written_and_nothing_else(tmp_path: Path) -> None:
    flags = (f"--record={tmp_path / 'run'}", f"--logdir={tmp_path / 'tb'}", f"--timeline={tmp_path / 'timeline.json'}")
    with served(tmp_path, {"double": "toy_models"}, *flags, "--log_level=debug") as server:
        assert server.infer("double", 1.0)[0] == 200
        # No file may grow from here on, the log neither.
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        end = time.perf_counter() + 6.5  # past a write of the outputs
        while time.perf_counter() < end:
            assert server.infer("double", 1.0)[0] == 200
            time.sleep(0.1)
        server.is_well()
        assert server.stop() == 0
    assert not list(tmp_path.rglob("*.tmp*")) and not (tmp_path / "timeline.json").exists()


def test_sigterm_under_load_drains_and_answers_the_rest_with_503(tmp_path: Path) -> None:
    with served(tmp_path, {"slow": "toy_models"}, "--drain_timeout=0.5", "--log_level=debug") as server:
        statuses: list[int | str] = []
        lock = threading.Lock()

        def client() -> None:
            try:
                status: int | str = server.infer("slow", 200.0)[0]
            except ConnectionRefusedError:
                status = "refused"
            with lock:
                statuses.append(status)

        threads = [threading.Thread(target=client) for _ in range(60)]
        for thread in threads:
            thread.start()
        server.until(lambda: server.metrics()["strait_queue_length"] > 20)
        server.process.send_signal(signal.SIGTERM)
        late = [threading.Thread(target=client) for _ in range(10)]
        for thread in late:
            thread.start()
        for thread in (*threads, *late):
            thread.join(30)
        assert server.process.wait(30) == 0
    assert len(statuses) == 70, "each has one answer, or was refused when the server had stopped listening"
    assert set(statuses) <= {200, 503, "refused"} and {200, 503} <= set(statuses)
    ended = re.findall(r"request (\d+)(?: \S+)? of slow (\w+) after", server.log.read_text())
    assert len({number for number, _ in ended}) == len(ended) == len(statuses) - statuses.count("refused")
    assert sum(how in ("met", "late") for _, how in ended) == statuses.count(200)


def _send(server: Served, model: str, first: float, part: float = 1.0) -> socket.socket:
    """A client that has sent a request, or a part of it, and does not read its answer."""
    body = infer_body(first)
    head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    sent = head.encode() + body
    client = socket.create_connection(("127.0.0.1", server.port))
    server.left += part == 1.0
    client.sendall(sent[: int(part * len(sent))])
    return client


def _ended(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
