"""Models and policies that come and go while requests are served: nobody else notices."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy_models
from api_server import BLOCKS, call_of, until

from agents.policies.registry import make_policy
from envs.profiles.profile import synthetic_profile
from envs.scheduling.state import HIGH, LOW
from serving.api.dataplane import DataPlane
from serving.api.infer_call import InferCall, Wanted
from serving.api.refusal import Refusal
from serving.config import ServeConfig
from serving.engine.engine import Engine
from serving.models.load import load_model
from serving.models.served import ModelSpec
from serving.server import RunningServer, Server
from traces.errors import InputError

X = np.arange(4, dtype=np.float32)
ENTRY = "- {{name: {0}, source: 'toy_models:{0}', input_shape: [4], compiled: false}}\n"


def write_models(path: Path, *names: str) -> Path:
    path.write_text("".join(ENTRY.format(name) for name in names))
    return path


@asynccontextmanager
async def serving(models: Path, **settings: Any) -> AsyncIterator[RunningServer]:
    config = ServeConfig(models=[str(models)], streams=2, policy="edf", port=0, **settings)
    opened = await asyncio.get_running_loop().run_in_executor(None, Server(config).open)
    running = await opened.start()
    try:
        yield running
    finally:
        await running.drain()
        await running.close()
        await opened.close()
        assert running.engine.offered.sum() == running.engine.ended.sum()


async def traffic(engine: Engine, stop: asyncio.Event, counts: Counter[str]) -> None:
    while not stop.is_set():
        outcome = await engine.submit("double", 0, 1e5, X)
        counts[outcome.outcome] += 1
        assert outcome.output is not None
        np.testing.assert_array_equal(outcome.output, 2 * X)


async def test_a_model_comes_and_goes_under_traffic(tmp_path: Path) -> None:
    listing = write_models(tmp_path / "models.yaml", "double", "slow")
    async with serving(listing) as server:
        engine, repository = server.engine, server.repository
        stop, counts = asyncio.Event(), Counter[str]()
        clients = [asyncio.ensure_future(traffic(engine, stop, counts)) for _ in range(3)]
        write_models(listing, "double", "slow", "faulty")
        with pytest.raises(KeyError):
            await engine.submit("faulty", 0, 1e5, X)
        await repository.load("faulty")
        assert engine.models == ("double", "slow", "faulty")
        assert (await engine.submit("faulty", 1, 1e5, X)).outcome == "met"
        await repository.unload("slow")
        assert engine.models == ("double", "faulty"), "indices moved up"
        assert (await engine.submit("faulty", 1, 1e5, X)).outcome == "met"
        with pytest.raises(KeyError):
            await engine.submit("slow", 0, 1e5, X)
        await repository.load("slow")
        assert (await engine.submit("slow", 0, 1e5, X)).outcome == "met"
        before = sum(counts.values())
        await until(lambda: sum(counts.values()) > before)
        stop.set()
        await asyncio.gather(*clients)
        assert set(counts) == {"met"}
        rows = {row["name"]: row["state"] for row in repository.index()}
        assert rows == {"double": "READY", "slow": "READY", "faulty": "READY"}


async def test_a_model_is_loaded_again_under_traffic_and_no_request_fails(
    tmp_path: Path, gate: threading.Event
) -> None:
    listing = write_models(tmp_path / "models.yaml", "double")
    async with serving(listing) as server:
        engine, repository = server.engine, server.repository
        plane = DataPlane(engine, server.config, repository)
        stop, seen = asyncio.Event(), [[0.0], [0.0], [0.0]]

        async def client(answers: list[float]) -> None:
            while not stop.is_set():
                answer = await plane.infer(plane.model("double"), call_of(X[None]), 0, 1e5)  # a Refusal would be raised
                answers.append(float(answer.outputs[0][0, 1]))
                await asyncio.sleep(0)

        clients = [asyncio.ensure_future(client(answers)) for answers in seen]
        listing.write_text(listing.read_text().replace("toy_models:double", "toy_models:triple_behind_gate"))
        loading = asyncio.ensure_future(repository.load("double"))
        await until(lambda: min(map(len, seen)) > 10)
        assert not loading.done(), "the old one serves until the new one is ready"
        assert repository.index() == [{"name": "double", "version": "1", "state": "READY", "reason": ""}]
        gate.set()
        await loading
        await until(lambda: all(answers[-1] == 3.0 for answers in seen))
        stop.set()
        await asyncio.gather(*clients)
        for answers in seen:
            assert set(answers) == {0.0, 2.0, 3.0} and answers == sorted(answers)
        assert list(engine.executor.models) == ["double"]

        listing.write_text(listing.read_text().replace("triple_behind_gate", "unbuilt"))
        with pytest.raises(Exception, match="cannot be built"):
            await repository.load("double")
        assert repository.index()[0]["state"] == "READY"
        assert (await engine.submit("double", 0, 1e5, X)).output[1] == 3  # type: ignore[index]


@pytest.mark.parametrize(("takes", "dtype"), [(4, "float32"), (3, "float32"), (4, "int64")])
async def test_what_is_queued_goes_to_the_new_model_if_that_takes_its_input(
    tmp_path: Path, gate: threading.Event, takes: int, dtype: str
) -> None:
    async with serving(write_models(tmp_path / "models.yaml", "double", "slow")) as server:
        engine, executor = server.engine, server.engine.executor
        slow = [asyncio.ensure_future(engine.submit("slow", 0, 1e5, BLOCKS[0])) for _ in range(2)]
        await until(lambda: engine.in_flight == 2)
        queued = asyncio.ensure_future(engine.submit("double", 0, 1e5, X))
        await until(lambda: engine.queued == 1)
        executor.load(load_model(ModelSpec("next", "toy_models:triple", (takes,), dtype, compiled=False)))
        assert (engine.in_flight, engine.queued) == (2, 1)
        engine.put_model(engine.profile.select(["double"]), "next")
        gate.set()
        outcome = await queued
        if (takes, dtype) == (4, "float32"):
            assert outcome.outcome == "met" and outcome.output is not None
            np.testing.assert_array_equal(outcome.output, 3 * X)
        else:
            assert (outcome.outcome, outcome.reason) == ("dropped", "model unloaded")
        assert (await engine.submit("double", 0, 1e5, X[:takes].astype(dtype))).outcome == "met"
        assert {(await job).outcome for job in slow} == {"met"}


@pytest.mark.parametrize("again", [True, False])
async def test_a_model_that_is_replaced_or_unloaded_leaves_nothing_behind(tmp_path: Path, again: bool) -> None:
    listing = write_models(tmp_path / "models.yaml", "double", "wide")
    listing.write_text(listing.read_text().replace("false", "true"))
    async with serving(listing) as server:
        await server.repository.load("wide")
        module = weakref.ref(server.engine.served()["wide"].module)
        weights = [weakref.ref(parameter) for parameter in server.engine.served()["wide"].module.parameters()]
        assert (await server.engine.submit("wide", 0, 1e5, X)).outcome == "met"
        await (server.repository.load if again else server.repository.unload)("wide")
        assert module() is None and not any(weight() is not None for weight in weights)


async def test_without_room_for_both_the_old_model_ends_before_it_is_loaded_again(tmp_path: Path) -> None:
    listing = write_models(tmp_path / "models.yaml", "double", "wide")
    async with serving(listing, memory_limit="20M") as server:
        engine, repository = server.engine, server.repository
        loading = asyncio.ensure_future(repository.load("wide"))
        while "wide" in engine.models:
            await asyncio.sleep(0.001)
        assert not loading.done()
        await loading
        assert (await engine.submit("wide", 0, 1e5, X)).outcome == "met"


async def test_unloading_drops_what_is_queued_and_lets_end_what_is_in_flight(
    tmp_path: Path, gate: threading.Event
) -> None:
    async with serving(write_models(tmp_path / "models.yaml", "double", "slow")) as server:
        engine = server.engine
        await engine.reload_policy(make_policy("edf", max_batch=1))
        slow = [asyncio.ensure_future(engine.submit("slow", 0, 1e5, BLOCKS[0])) for _ in range(5)]
        other = asyncio.ensure_future(engine.submit("double", 1, 1e5, X))
        await until(lambda: engine.in_flight == 2 and engine.queued == 4)
        unloading = asyncio.ensure_future(server.repository.unload("slow"))
        await until(lambda: engine.queued == 1)
        gate.set()
        await unloading
        outcomes = [await job for job in slow]
        assert Counter((o.outcome, o.reason) for o in outcomes) == {("met", ""): 2, ("dropped", "model unloaded"): 3}
        assert (await other).outcome == "met", "queued behind, it moved to another index"
        with pytest.raises(InputError, match="only one left"):
            await server.repository.unload("double")


async def test_the_predictor_keeps_what_it_learned(tmp_path: Path) -> None:
    async with serving(write_models(tmp_path / "models.yaml", "double", "wide", "slow")) as server:
        engine = server.engine
        await asyncio.gather(*(engine.submit("wide", 0, 1e5, X) for _ in range(30)))
        weight, bias = engine.scheduler.state.weight.copy(), engine.scheduler.state.bias[0, 1].copy()
        await engine.remove_model("double")
        np.testing.assert_array_equal(engine.scheduler.state.weight, weight)
        np.testing.assert_array_equal(engine.scheduler.state.bias[0, 0], bias)


async def test_a_model_that_cannot_be_loaded_is_refused_and_the_rest_goes_on(tmp_path: Path) -> None:
    listing = write_models(tmp_path / "models.yaml", "double")
    async with serving(listing, memory_limit="1M") as server:
        engine, repository = server.engine, server.repository
        with pytest.raises(KeyError):
            await repository.load("nobody")
        write_models(listing, "double", "wide", "nothing")
        with pytest.raises(InputError, match="MiB are left of the memory limit of 1.0 MiB"):
            await repository.load("wide")
        with pytest.raises(InputError, match="cannot import"):
            await repository.load("nothing")
        states = {row["name"]: (row["state"], bool(row["reason"])) for row in repository.index()}
        assert states == {
            "double": ("READY", False), "wide": ("UNAVAILABLE", True), "nothing": ("UNAVAILABLE", True),
        }  # fmt: skip
        assert engine.models == ("double",)
        assert (await engine.submit("double", 0, 1e5, X)).outcome == "met"


async def test_a_corrupt_checkpoint_is_refused_and_the_old_policy_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(write_models(tmp_path / "models.yaml", "double")) as server:
        engine = server.engine
        checkpoint = tmp_path / "policy.safetensors"
        checkpoint.write_bytes(b"\x08\0\0\0\0\0\0\0 garbage")
        before = engine.guard.policy
        monkeypatch.setattr(server.config, "policy", str(checkpoint))
        assert not await server.reloader.reload_policy()
        assert engine.guard.policy is before and engine.guard.replaced is None
        assert "edf stays in force" in caplog.text and "not a safetensors file" in caplog.text
        monkeypatch.setattr(server.config, "policy", "strait:no-transfer")
        jobs = [asyncio.ensure_future(engine.submit("double", 0, 1e5, X)) for _ in range(20)]
        assert await server.reloader.reload_policy()
        assert engine.guard.name == "strait:no-transfer"
        assert not engine.scheduler.tables.h2d.any(), "what the scheduler knows changes with the policy"
        assert {(await job).outcome for job in jobs} == {"met"}


async def test_priority_and_timeout_of_a_model_are_its_requests_defaults(tmp_path: Path) -> None:
    listing = write_models(tmp_path / "models.yaml", "double", "slow")
    async with serving(listing) as server:
        repository = server.repository
        plane = DataPlane(server.engine, server.config, repository)
        assert plane.schedule(plane.model("double"), {}, 1)[0] == LOW
        listing.write_text(listing.read_text().replace("false}", "false, priority: high, timeout_ms: 70}"))
        repository.index()  # reads the listing again
        assert plane.schedule(plane.model("double"), {}, 1)[0] == LOW, "what is loaded stays as it is"
        await repository.load("double")
        view = plane.model("double")
        assert plane.schedule(view, {}, 1) == (HIGH, 70.0)
        assert plane.schedule(view, {}, 3) == (HIGH, 210.0)
        assert plane.schedule(view, {"priority": 2, "timeout": 5000}, 1) == (LOW, 5.0)
        assert plane.schedule(plane.model("slow"), {}, 1)[0] == LOW


async def test_a_model_whose_own_code_fails_while_it_is_loaded_is_unavailable_and_says_why(tmp_path: Path) -> None:
    listing = write_models(tmp_path / "models.yaml", "double")
    async with serving(listing) as server:
        repository = server.repository
        listing.write_text(listing.read_text() + ENTRY.format("unbuilt"))
        with pytest.raises(Exception, match="cannot be built"):
            await repository.load("unbuilt")
        assert {row["name"]: row["state"] for row in repository.index()} == {
            "double": "READY",
            "unbuilt": "UNAVAILABLE",
        }


async def test_versions_are_loaded_beside_each_other_and_buckets_come_and_go_with_their_model(tmp_path: Path) -> None:
    for version in ("1", "2"):
        folder = tmp_path / "net" / version
        folder.mkdir(parents=True)
        torch.jit.save(
            torch.jit.script(toy_models.Double() if version == "1" else toy_models.Triple()), folder / "m.pt"
        )
    (tmp_path / "net" / "model.yaml").write_text("inputs: {x: [-1]}\nbuckets: [4, 8]\n")
    async with serving(tmp_path, batch_sizes=[1, 2]) as server:
        plane = DataPlane(server.engine, server.config, server.repository)
        assert server.engine.models == ("net@4", "net@8")
        assert plane.model("net").metadata()["versions"] == ["2"]
        with pytest.raises(Refusal, match="has version 2, not '1'"):
            plane.model("net", "1")
        await plane.load("net", {"version": "1"})
        for version, factor in (("", 3), ("2", 3), ("1", 2)):
            view = plane.model("net", version)
            call = InferCall(None, (np.ones((1, 6), np.float32),), 6, {}, (Wanted(0, binary=True),))
            answer = await plane.infer(view.bucket(6), call, 0, 1e5)
            assert answer.outputs[0].tolist() == [[factor] * 6]
        assert plane.model("net", "1").metadata()["versions"] == ["2", "1"]
        states = {(row["name"], row["version"]): row["state"] for row in plane.repository_index()}
        assert states == {("net", "1"): "READY", ("net", "2"): "READY"}
        await plane.unload("net", {"version": "1"})
        with pytest.raises(Refusal, match="has version 2, not '1'"):
            plane.model("net", "1")
        with pytest.raises(Refusal, match="no model 'net'"):
            await plane.load("net", {"version": "9"})
        with pytest.raises(Refusal, match="the only one left"):
            await plane.unload("net", {})
        (tmp_path / "net" / "model.yaml").write_text("inputs: {x: [-1]}\nbuckets: [8, 16]\n")
        await plane.load("net", {})
        assert server.engine.models == ("net@8", "net@16") and plane.model("net").largest == 16


WIDE = "- {{name: {0}, source: 'toy_models:wide', input_shape: [4], seed: {1}}}\n"


async def test_models_over_the_memory_limit_take_turns_and_each_answers_as_itself(tmp_path: Path) -> None:
    """Three models of 16 MiB where two fit: none is refused, each request is answered by its own model."""
    (tmp_path / "models.yaml").write_text("".join(WIDE.format(name, seed) for seed, name in enumerate("abc")))
    expected = {}
    for seed, name in enumerate("abc"):
        model = load_model(ModelSpec(name, "toy_models:wide", (4,), seed=seed))
        expected[name] = model.module(torch.from_numpy(X[None]))[0].numpy()
    async with serving(tmp_path, memory_limit="45M", batch_sizes=[1, 2], deadline_floor_ms=60_000.0) as server:
        plane = DataPlane(server.engine, server.config, server.repository)
        assert server.engine.models == ("b", "c") and set(server.repository.evicted) == {"a"}
        assert {view.name for view in plane.views.values()} == set("abc"), "clients see all of them"
        assert {row["state"] for row in plane.repository_index()} == {"READY"}

        async def ask(name: str, priority: int = 1) -> dict[str, Any]:
            view = plane.model(name)
            priority, deadline_ms = plane.schedule(view, {"priority": priority + 1}, 1)
            answer = await plane.infer(view, call_of(X[None]), priority, deadline_ms)
            np.testing.assert_allclose(answer.outputs[0][0], expected[name], rtol=1e-3, atol=1e-3)
            return dict(answer.parameters)

        for name in "abcabc":
            await ask(name)
            assert len(server.engine.models) == 2 and name in server.engine.models
        out = next(iter(server.repository.evicted))
        evicted = server.repository.evicted[out]
        with pytest.raises(Refusal, match="must be loaded first, predicted finish at"):
            await plane.infer(plane.model(out), call_of(X[None]), 0, 0.5 * evicted.load_ms)
        # A burst for all of them at once: a model is loaded once for all that wait for it.
        answers = await asyncio.gather(*(ask(name) for name in "abc" * 4))
        assert all(answer["outcome"] in ("met", "late") for answer in answers)
        resident = server.engine.models[0]
        out = next(iter(server.repository.evicted))
        loading = asyncio.ensure_future(ask(out))
        while not loading.done() and resident in server.engine.models:
            await ask(resident, priority=0)
        await loading
        assert not server.engine.ledger.inside


async def test_buckets_that_are_not_given_are_those_of_the_profile(tmp_path: Path) -> None:
    entry = "{name: tag, source: 'tensor_models:Tagger', inputs: {ids: {shape: [-1], datatype: int64, high: 50}}}"
    (tmp_path / "models.yaml").write_text(f"- {entry}\n")
    made = synthetic_profile(2)
    replace(made, models=("tag@4", "tag@16")).save(tmp_path / "profile.json")
    async with serving(tmp_path, profile=str(tmp_path / "profile.json")) as server:
        assert server.engine.models == ("tag@4", "tag@16")
        await server.repository.load("tag")
        assert set(server.engine.models) == {"tag@4", "tag@16"}
    with pytest.raises(InputError, match="lacks model 'bert'"):
        Server(ServeConfig(models=["bert"], profile=str(tmp_path / "profile.json")))
