"""A request is freed when it is over, however it went: the collector comes by seldom in a gateway."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from armature.openai.serving.options import ServingOptions
from tests.services.gateway.fakes import breaking_after
from tests.services.gateway.harness import MODEL, Gateway, make_worker, running_gateway
from tests.support.eventually import eventually
from tests.support.uncollected import living, no_collector

HELD = ("Exchange", "RequestResponseCycle", "Generation", "Choices", "Job")
KEPT = 1
"""An open connection keeps its last request."""
VISITS = 5
SAY_SOMETHING = [{"role": "user", "content": "hello"}]

Visit = Callable[[Gateway], Awaitable[None]]


async def get_a_whole_answer(gateway: Gateway) -> None:
    assert (await gateway.chat()).status_code == 200


async def get_a_streamed_answer(gateway: Gateway) -> None:
    assert b"[DONE]" in (await gateway.chat(stream=True)).content


async def be_refused(gateway: Gateway) -> None:
    assert (await gateway.chat(temperature="hot")).status_code == 400
    assert (await gateway.client.post("/v1/chat/completions", content=b"{")).status_code == 400
    assert (await gateway.chat(model="nobody's")).status_code == 404


async def be_refused_a_grammar(gateway: Gateway) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "nothing"}}}
    assert (await gateway.chat(response_format=wanted)).status_code == 400


async def leave_in_mid_answer(gateway: Gateway) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(gateway.url).port)
    body = json.dumps({"model": MODEL, "messages": SAY_SOMETHING}).encode()
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
    await eventually(lambda: gateway.core.inflight == 1)
    writer.transport.abort()
    await eventually(lambda: gateway.core.inflight == 0)


@asynccontextmanager
async def gateway_whose_worker(**behaves: Any) -> AsyncIterator[Gateway]:
    async with running_gateway(make_worker(**behaves), options=ServingOptions(stall_timeout_s=60)) as gateway:
        yield gateway


@pytest.mark.parametrize(
    ("visit", "behaves"),
    [
        (get_a_whole_answer, {}),
        (get_a_streamed_answer, {}),
        (be_refused, {}),
        (be_refused_a_grammar, {}),
        (leave_in_mid_answer, {"script": breaking_after(5, "silence")}),
    ],
    ids=lambda each: getattr(each, "__name__", "worker"),
)
async def test_nothing_of_a_request_waits_for_the_collector(visit: Visit, behaves: dict[str, Any]) -> None:
    with no_collector():
        others = living(*HELD)  # which other tests in this process have left, also of other classes with these names

    def is_freed() -> bool:
        return all(count <= others[name] + KEPT for name, count in living(*HELD).items())

    async with gateway_whose_worker(**behaves) as gateway:
        await visit(gateway)
        with no_collector():
            for _ in range(VISITS):
                await visit(gateway)
            await eventually(is_freed, 5.0, what="the others are freed")
