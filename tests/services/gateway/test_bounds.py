"""What clients together may take of a gateway: connections, bodies, places; and how long one may take its answer."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import pytest
from prometheus_client import REGISTRY
from starlette.types import Receive, Scope, Send

from armature.openai.serving.http.certificate import Certificate
from armature.openai.serving.http.exchange import ClientLeftError, Exchange
from armature.openai.serving.http.seats import SPARE_SEATS_OF_ONE, SeatOptions
from armature.openai.serving.http.server import HttpServer
from armature.openai.serving.options import ServingOptions
from tests.services.gateway.harness import MODEL, Gateway, make_worker, running_gateway
from tests.support.certificates import Authority
from tests.support.connections import clients_of
from tests.support.eventually import eventually

CHAT = "/v1/chat/completions"
BODY = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}).encode()

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def port_of(gateway: Gateway) -> int:
    port = httpx.URL(gateway.url).port
    assert port is not None
    return port


@asynccontextmanager
async def clients(port: int, num: int) -> AsyncGenerator[list[Streams], None]:
    """So many connections, all of which the server has taken in."""
    async with AsyncExitStack() as stack:
        opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(num)]
        for _, writer in opened:
            stack.callback(writer.transport.abort)
        for reader, writer in opened:
            writer.write(b"GET /live HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            await reader.readuntil(b"}")
        yield opened


def connections() -> float:
    return REGISTRY.get_sample_value("armature_gateway_http_connections") or 0.0


def refused(reason: str) -> float:
    return REGISTRY.get_sample_value("armature_gateway_http_connections_refused_total", {"reason": reason}) or 0.0


@pytest.mark.parametrize(
    ("bound", "status", "reason"),
    [
        pytest.param(SeatOptions(max_connections=2), 503, "all_taken", id="of all"),
        pytest.param(SeatOptions(max_connections_per_address=2), 429, "address", id="of an address"),
    ],
)
async def test_a_connection_too_many_is_told_so_and_closed(bound: SeatOptions, status: int, reason: str) -> None:
    async with running_gateway(make_worker(), seats=bound) as gateway, clients(port_of(gateway), 2) as (first, _):
        before = refused(reason)
        for path, shape in ((CHAT, "error"), ("/v1/messages", "type")):
            response = await gateway.client.post(path, content=BODY)
            assert (response.status_code, response.headers["connection"]) == (status, "close")
            assert response.headers["retry-after"] == "1" and shape in response.json()
        assert (await gateway.client.get("/live")).status_code == 200
        assert (await gateway.client.get("/metrics")).status_code == 200
        assert refused(reason) == before + 3  # both, and the one connection that asked the rest
        first[1].transport.abort()
        await eventually(lambda: len(clients_of(port_of(gateway))) == 2)
        async with httpx.AsyncClient(base_url=gateway.url) as another:
            assert (await another.post(CHAT, content=BODY)).status_code == 200


async def test_who_is_beyond_the_spare_seats_too_is_closed_at_once() -> None:
    bound = SeatOptions(max_connections=1)
    async with (
        running_gateway(make_worker(), seats=bound) as gateway,
        clients(port_of(gateway), 1 + SPARE_SEATS_OF_ONE),
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(gateway))
        assert await reader.read() == b""
        writer.close()
    async with running_gateway(make_worker(), seats=bound) as gateway:
        assert (await gateway.chat()).status_code == 200


async def test_a_client_that_does_not_end_its_handshake_counts_as_any_other(tmp_path: Path) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("there was no request")

    files = Authority(tmp_path).issue("gateway")
    http = HttpServer(app, "127.0.0.1", 0, certificate=Certificate(files.cert, files.key))
    running = asyncio.create_task(http.run())
    await http.started()
    before = connections()
    _, silent = await asyncio.open_connection("127.0.0.1", http.port)
    await eventually(lambda: connections() == before + 1)
    silent.transport.abort()
    await eventually(lambda: connections() == before)
    http.stop(now=True)
    await running


async def test_bodies_that_do_not_come_hold_no_place_of_those_that_do() -> None:
    options = ServingOptions(max_concurrent_requests=1)
    async with running_gateway(make_worker(), options=options) as gateway:
        slow = [await asyncio.open_connection("127.0.0.1", port_of(gateway)) for _ in range(3)]
        for _, writer in slow:
            writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(BODY))
            writer.write(BODY[:5])
        await eventually(lambda: gateway.core.bodies.unfinished_bytes == 15)
        assert (await gateway.chat()).status_code == 200
        for reader, writer in slow:
            writer.write(BODY[5:])
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            writer.close()
        await eventually(lambda: gateway.core.bodies.taken_bytes == 0)


async def test_large_bodies_are_refused_when_others_take_all_the_room_and_small_ones_are_not() -> None:
    options = ServingOptions(max_body_bytes=1000, max_body_bytes_in_all=2000)
    async with running_gateway(make_worker(), options=options) as gateway:
        unfinished = [await asyncio.open_connection("127.0.0.1", port_of(gateway)) for _ in range(2)]
        for _, writer in unfinished:
            writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 900\r\n\r\n" + b" " * 480)
        await eventually(lambda: gateway.core.bodies.unfinished_bytes == 960)
        assert (await gateway.chat()).status_code == 200
        reader, writer = unfinished[0]
        writer.write(b" " * 100)
        assert (await reader.readline()).startswith(b"HTTP/1.1 429")
        assert b"overloaded" in await reader.readuntil(b"}}")
        for _, writer in unfinished:
            writer.transport.abort()
        await eventually(lambda: gateway.core.bodies.taken_bytes == 0)


async def test_who_takes_a_large_answer_too_slowly_loses_its_connection() -> None:
    """It takes some of it again and again, so that it never counts as gone."""
    left = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with pytest.raises(ClientLeftError):
            await Exchange(scope, receive, send, headers=()).send_json(200, b"a" * 60_000_000)
        left.set()

    http = HttpServer(app, "127.0.0.1", 0, write_timeout_s=1, least_bytes_per_s=1 << 30)
    running = asyncio.create_task(http.run())
    await http.started()
    reader, writer = await asyncio.open_connection("127.0.0.1", http.port)
    async with asyncio.timeout(20):
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        while not left.is_set():
            await reader.read(65536)
            await asyncio.sleep(0.01)
        await eventually(lambda: not clients_of(http.port))
    writer.transport.abort()
    http.stop(now=True)
    await running
