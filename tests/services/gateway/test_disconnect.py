"""A client that leaves cancels its work everywhere, at whatever stage it leaves."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from armature.openai.serving.options import ServingOptions
from tests.services.gateway.fakes import FakeRouter, FakeWorker, breaking_after
from tests.services.gateway.harness import MODEL, Gateway, answer, make_worker, running_gateway
from tests.support.connections import connected, is_connected, port_of
from tests.support.eventually import eventually

BODY: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}


async def leave_when(
    gateway: Gateway, condition: Callable[[], Any], *, stream: bool, others: int = 0, content: str = "hello"
) -> None:
    """Send a request and break the connection as soon as `condition` holds; then only `others` are in flight."""
    reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(gateway.url).port)
    body = json.dumps({**BODY, "messages": [{"role": "user", "content": content}], "stream": stream}).encode()
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
    await eventually(condition)
    writer.transport.abort()
    await eventually(lambda: gateway.core.inflight == others, what="the request has ended")
    assert reader is not None


@pytest.mark.parametrize("stream", [False, True])
async def test_leaving_while_the_router_thinks_gives_the_late_placement_back(stream: bool) -> None:
    worker, late = make_worker(), asyncio.Event()
    router = FakeRouter([worker], late=late)
    options = ServingOptions(route_timeout_s=30.0)
    async with running_gateway(worker, routers=[router], options=options) as gateway:
        await leave_when(gateway, lambda: router.queries, stream=stream)
        late.set()
        await eventually(lambda: router.finished() == [router.queries[0].request_id], what="it is given back")
        assert not worker.requests


@pytest.mark.parametrize("stream", [False, True])
async def test_leaving_before_the_first_token_cancels_the_worker(stream: bool) -> None:
    worker = make_worker(step=asyncio.Event())
    router = FakeRouter([worker])
    async with running_gateway(worker, routers=[router]) as gateway:
        await leave_when(gateway, lambda: worker.requests, stream=stream)
        await eventually(lambda: worker.cancelled == [worker.requests[0].stream_id], what="the worker is told")
        await eventually(lambda: router.finished() == [router.queries[0].request_id], what="the router is told")


@pytest.mark.parametrize("stream", [False, True])
async def test_leaving_in_mid_answer_cancels_the_worker(stream: bool) -> None:
    worker = make_worker(script=breaking_after(5, "silence"))
    router = FakeRouter([worker])
    options = ServingOptions(stall_timeout_s=60)
    async with running_gateway(worker, routers=[router], options=options) as gateway:
        await leave_when(gateway, lambda: len(router.progress) == 1, stream=stream)
        await eventually(lambda: worker.cancelled == [worker.requests[0].stream_id], what="the worker is told")
        await eventually(router.finished, what="the router is told")


async def test_leaving_is_noticed_behind_a_body_that_stopped_the_reading() -> None:
    """uvicorn reads no more of a connection from 64 KiB of a body on, until somebody takes them."""
    worker = make_worker(step=asyncio.Event())
    worker.card.context_length = 1_000_000
    async with running_gateway(worker, options=ServingOptions()) as gateway:
        await leave_when(gateway, lambda: worker.requests, stream=True, content="long " * 100_000)
        await eventually(lambda: worker.cancelled == [worker.requests[0].stream_id], what="the worker is told")


async def test_leaving_while_a_request_is_moved_ends_the_moving() -> None:
    """The only worker fails again and again; the client goes during the pause before the next try."""
    worker = make_worker(script=breaking_after(0))
    options = ServingOptions(migration_limit=1000, stall_timeout_s=60)
    async with running_gateway(worker, options=options) as gateway:
        await leave_when(gateway, lambda: len(worker.requests) >= 2, stream=True)
        seen = len(worker.requests)
        await asyncio.sleep(0)
        assert gateway.core.inflight == 0
        assert len(worker.requests) == seen


async def test_leaving_while_the_body_is_sent_ends_the_request() -> None:
    async with running_gateway(make_worker()) as gateway:
        _, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(gateway.url).port)
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        await eventually(lambda: gateway.core.bodies.unfinished_bytes == 1)
        assert gateway.core.inflight == 0
        writer.transport.abort()
        await eventually(lambda: gateway.core.bodies.taken_bytes == 0)


async def test_others_on_the_same_stream_go_on() -> None:
    worker = make_worker(step=asyncio.Event())
    async with running_gateway(worker, options=ServingOptions()) as gateway:
        staying = asyncio.create_task(gateway.chat())
        await eventually(lambda: worker.requests)
        await leave_when(gateway, lambda: len(worker.requests) == 2, stream=True, others=1)
        worker.step.set()
        response = await staying
        assert response.json()["usage"]["completion_tokens"] == len(answer())
        assert worker.streams == 1


@asynccontextmanager
async def unread_answer(gateway: Gateway, **fields: Any) -> AsyncIterator[int]:
    """An answer whose client holds the connection and does not read; the client's port."""
    reader, writer = await connected(port_in(gateway))
    body = json.dumps({**BODY, "stream": True, "logprobs": True, "top_logprobs": 20, **fields}).encode()
    writer.write(request_of(body))
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    yield port_of(writer)
    writer.transport.abort()


def port_in(gateway: Gateway) -> int:
    return httpx.URL(gateway.url).port or 0


def request_of(body: bytes) -> bytes:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
    return head % len(body) + body


def worker_with_endless_answer(batch: int) -> FakeWorker:
    worker = make_worker(answer=(*(answer()[:-1] * 4000), 2), batch=batch)
    worker.card.context_length = 1_000_000
    return worker


@pytest.mark.parametrize("fields", [{}, {"stream": False, "max_tokens": 3000, "n": 3}], ids=["streamed", "whole"])
async def test_a_client_that_does_not_read_is_given_up_with_its_connection(fields: dict[str, Any]) -> None:
    worker = worker_with_endless_answer(batch=50)
    options = ServingOptions(write_timeout_s=0.3, max_buffered_bytes=100_000_000)
    async with (
        running_gateway(worker, options=options) as gateway,
        unread_answer(gateway, **fields) as client_port,
    ):
        port = port_in(gateway)
        assert is_connected(port, client_port)
        await eventually(lambda: gateway.core.inflight == 0, what="it is given up")
        await eventually(lambda: worker.cancelled or worker.finished)
        await eventually(lambda: not is_connected(port, client_port), what="its connection is broken off")


async def test_tokens_beyond_the_buffer_of_a_slow_client_cancel_its_request_only() -> None:
    worker = worker_with_endless_answer(batch=500)
    options = ServingOptions(write_timeout_s=30.0, max_buffered_bytes=100_000)
    async with running_gateway(worker, options=options) as gateway:
        async with unread_answer(gateway):
            await eventually(lambda: worker.cancelled, what="its work is cancelled though the connection lives")
            other = await gateway.chat(max_tokens=5)
            assert other.json()["usage"]["completion_tokens"] == 5
        await eventually(lambda: gateway.core.inflight == 0)
