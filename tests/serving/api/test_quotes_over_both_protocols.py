"""How likely a request is to be in time: asked for by itself, with a request, and to refuse what is unlikely; over both."""

from __future__ import annotations

import grpc
import pytest
from both_protocols import Both, both, request

from serving.api.protocol import inference_pb2 as pb
from serving.engine.request import UNREACHABLE, Observer, RequestResult
from serving.executors.cpu import CpuExecutor

MINUTE_US, HOPELESS_US = 60_000_000, 1
QUOTE = "strait.StraitService/Quote"


def asking(timeout_us: int, quote: bool = True) -> dict[str, object]:
    return request(parameters={"priority": 1, "timeout": timeout_us, "quote": quote})


class Ends(Observer):
    def __init__(self) -> None:
        self.reasons: list[str] = []

    def request_ended(self, result: RequestResult) -> None:
        self.reasons.append(result.reason)


async def over_both(clients: Both, head: dict[str, object]) -> list[object]:
    return [await clients.over_http(head), await clients.over_grpc(head)]


async def test_an_answer_has_its_quote_if_the_request_asks_for_it(executor: CpuExecutor) -> None:
    async with both(executor) as clients:
        for reply in await over_both(clients, asking(MINUTE_US)):
            assert reply.error == "" and 90 <= reply.parameters["quoted_percent"] <= 100
        for head in (asking(MINUTE_US, quote=False), request()):
            assert all("quoted_percent" not in reply.parameters for reply in await over_both(clients, head))


async def test_a_refusal_has_its_quote_if_the_request_asks_for_it(executor: CpuExecutor) -> None:
    async with both(executor) as clients:
        for quote in (True, False):
            for reply in await over_both(clients, asking(HOPELESS_US, quote)):
                assert reply.error and reply.error.endswith(" % in time on arrival)") == quote


async def test_what_is_quoted_too_low_is_refused_on_arrival_and_counted_as_a_request(executor: CpuExecutor) -> None:
    async with both(executor, least_quote=0.5) as clients:
        seen = Ends()
        clients.plane.engine.observers.append(seen)
        for reply in await over_both(clients, asking(HOPELESS_US, quote=False)):
            assert "is out of reach: quoted 0.0 % in time, at least 50.0 % is expected (--least_quote)" in reply.error
        assert seen.reasons == [UNREACHABLE] * 4  # two items each
        assert all(reply.error == "" for reply in await over_both(clients, asking(MINUTE_US, quote=False)))


async def test_a_quote_is_the_same_over_both_protocols(executor: CpuExecutor) -> None:
    async with both(executor) as clients:
        for timeout, least, most in ((MINUTE_US, 0.9, 1.0), (HOPELESS_US, 0.0, 0.1)):
            path = f"/v2/models/double/quote?priority=1&timeout={timeout}"
            _, asked, _ = await clients.http.ask("GET", path)
            answer, _ = await clients.call(QUOTE, pb.QuoteRequest(model_name="double", priority=1, timeout=timeout))
            told = {name: getattr(answer, name) for name in ("name", "priority", "timeout", "probability")}
            assert told | {"finish_us": dict(answer.finish_us)} == asked
            assert least <= asked["probability"] <= most and set(asked["finish_us"]) == {"p50", "p90", "p95"}


@pytest.mark.parametrize(
    "wrong",
    [{"priority": 3}, {"priority": -1}, {"timeout": -1}, {"size": 7}, {"model_version": "9"}, {"model_name": "x"}],
)
async def test_a_quote_that_cannot_be_is_refused_as_the_request_would_be(
    executor: CpuExecutor, wrong: dict[str, object]
) -> None:
    async with both(executor) as clients:
        asked = {"model_name": "double"} | wrong
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await clients.call(QUOTE, pb.QuoteRequest(**asked))
        assert refused.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
        path = f"/v2/models/{asked.pop('model_name')}"
        path += f"/versions/{asked.pop('model_version')}" if "model_version" in asked else ""
        _, answer, _ = await clients.http.ask("GET", f"{path}/quote?" + "&".join(f"{k}={v}" for k, v in asked.items()))
        if -1 not in wrong.values():  # HTTP's query takes no sign at all
            assert answer["error"] == refused.value.details()
