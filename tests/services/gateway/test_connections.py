"""What a connection may send before there is a request, and requests that are unusual on the wire."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import httpx
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from armature.openai.serving.http.exchange import Exchange
from armature.openai.serving.http.protocol import MAX_HEAD_BYTES, Client
from armature.openai.serving.http.server import HttpServer
from tests.services.gateway.harness import EOS, MODEL, encode, make_worker, running_gateway
from tests.support.connections import connected, is_connected, port_of
from tests.support.eventually import eventually

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
IDLE_S = 1
WRITE_S = 0.5
LARGE = b"a" * 8_000_000
"""More than the kernel takes for a client."""


async def _live(scope: Scope, receive: Receive, send: Send) -> None:
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@asynccontextmanager
async def connection(app: ASGIApp = _live, *, small: bool = False) -> AsyncGenerator[Streams, None]:
    server = HttpServer(app, "127.0.0.1", 0, idle_timeout_s=IDLE_S, write_timeout_s=WRITE_S)
    running = asyncio.create_task(server.run())
    await server.started()
    reader, writer = await connected(server.port) if small else await asyncio.open_connection("127.0.0.1", server.port)
    yield reader, writer
    writer.transport.abort()
    server.stop(now=True)
    await running


@pytest.mark.parametrize("sent", [b"", b"GET /", b"\r\n", b"GET / HTTP/1.1\r\nhost: x\r\n"])
async def test_a_connection_without_a_whole_request_is_closed(sent: bytes) -> None:
    async with connection() as (reader, writer), asyncio.timeout(5 * IDLE_S):
        writer.write(sent)
        assert await reader.read() == b""


async def test_a_connection_that_starts_a_second_request_and_stops_is_closed() -> None:
    async with connection() as (reader, writer), asyncio.timeout(5 * IDLE_S):
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert await reader.readuntil(b"ok")
        writer.write(b"GET / HT")
        assert await reader.read() == b""


async def test_headers_without_end_are_refused() -> None:
    async with connection() as (reader, writer), asyncio.timeout(5):
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n")
        writer.write((b"x-long: " + b"a" * 1014 + b"\r\n") * (MAX_HEAD_BYTES // 1024))
        assert await refusal(reader) == (431, "headers_too_large")


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\nhost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
async def test_what_is_no_http_is_refused_in_json(sent: bytes) -> None:
    async with connection() as (reader, writer), asyncio.timeout(5):
        writer.write(sent)
        assert await refusal(reader) == (400, "invalid_http")


async def refusal(reader: asyncio.StreamReader) -> tuple[int, str]:
    """Status and code of an error after which the connection is closed."""
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert b"content-length: %d" % len(body) in head
    error = json.loads(body)["error"]
    assert error["message"]
    return int(head.split()[1]), error["code"]


async def test_the_end_of_a_large_body_is_not_taken_for_a_head() -> None:
    """However it is cut into reads: the last one may well be larger than a head may be."""
    async with connection() as (reader, writer), asyncio.timeout(10):
        for size in range(100_000, 1_000_000, 100_000):
            writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % size)
            await asyncio.sleep(0)
            writer.write(b"a" * size)
            assert (await reader.readuntil(b"\r\n\r\nok")).startswith(b"HTTP/1.1 200")


async def test_pipelined_requests_are_all_answered() -> None:
    request = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 60000\r\n\r\n" + b"a" * 60000
    async with connection() as (reader, writer), asyncio.timeout(5):
        writer.write(request * 4)
        for _ in range(4):
            assert (await reader.readuntil(b"\r\n\r\nok")).startswith(b"HTTP/1.1 200")


async def test_a_client_that_sends_request_after_request_without_end_is_broken_off() -> None:
    answered = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal answered
        Client.of(scope).watch(lambda: None)  # as a streamed answer does, so that more is read
        await asyncio.sleep(0.2)
        answered += 1
        await _live(scope, receive, send)

    async with connection(app) as (reader, writer), asyncio.timeout(10):
        with contextlib.suppress(ConnectionError):
            while not reader.at_eof():
                writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n" * 20)
                await writer.drain()
                await asyncio.sleep(0)
        assert answered <= 1


async def _large(scope: Scope, receive: Receive, send: Send) -> None:
    head = [(b"content-length", b"%d" % len(LARGE)), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": LARGE})


async def _parts(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for more in (True, True, False):
        await send({"type": "http.response.body", "body": LARGE, "more_body": more})


@pytest.mark.parametrize("app", [_large, _parts], ids=["complete", "going on"])
async def test_who_takes_nothing_of_an_answer_loses_its_connection_whatever_was_asked_for(app: ASGIApp) -> None:
    async with connection(app, small=True) as (reader, writer), asyncio.timeout(10):
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        port, own = writer.get_extra_info("peername")[1], port_of(writer)
        assert is_connected(port, own)
        await eventually(lambda: not is_connected(port, own), what="it is broken off")


async def test_streamed_answers_to_pipelined_requests_come_in_order_each_in_its_own_chunks() -> None:
    """Tokens go straight to the connection, which a second answer waits for."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "stream": True}
    worker = make_worker(batch=1)
    async with running_gateway(worker) as gateway, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(gateway.url).port)
        for max_tokens in (3, 5):
            data = json.dumps(body | {"max_tokens": max_tokens, "stream_options": {"include_usage": True}}).encode()
            writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(data))
            writer.write(data)
        for max_tokens in (3, 5):
            assert b"transfer-encoding: chunked" in await reader.readuntil(b"\r\n\r\n")
            text = b""
            while size := int(await reader.readline(), 16):
                text += await reader.readexactly(size)
                assert await reader.readexactly(2) == b"\r\n"
            assert await reader.readexactly(2) == b"\r\n"
            assert b'"completion_tokens":%d' % max_tokens in text
            assert text.endswith(b"data: [DONE]\n\n")
        writer.close()


async def test_a_stream_begins_with_its_head_though_its_first_tokens_are_no_character_yet() -> None:
    async with running_gateway(make_worker(answer=(*encode("🙂 fine"), EOS), batch=1)) as gateway:
        body = {"model": MODEL, "prompt": "hello", "stream": True}
        response = await gateway.client.post("/v1/completions", json=body)
        assert response.status_code == 200
        events = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
        assert "".join(event["choices"][0]["text"] for event in events) == "🙂 fine"


@pytest.mark.parametrize("stream", [False, True])
async def test_who_asks_for_the_head_gets_no_body(stream: bool) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send, headers=())
        if stream:
            await exchange.send_events(b"data: 1\n\n")
            await exchange.send_events(b"data: 2\n\n", is_last=True)
        else:
            await exchange.send_json(200, b"{}")

    async with connection(app) as (reader, writer), asyncio.timeout(5):
        for _ in range(2):
            writer.write(b"HEAD / HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        _, _, body = (await reader.read()).partition(b"\r\n\r\n")
        assert body == (b"9\r\ndata: 1\n\n\r\n9\r\ndata: 2\n\n\r\n0\r\n\r\n" if stream else b"{}")


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_is_the_last_of_its_connection_if_the_client_wants_that(stream: bool) -> None:
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "stream": stream}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
    async with running_gateway(make_worker()) as gateway, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(gateway.url).port)
        writer.write(head % len(body) + body)
        said, _, answer = (await reader.read()).partition(b"\r\n\r\n")
        assert said.count(b"connection: close") == 1
        if stream:
            assert answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        else:
            assert b"content-length: %d" % len(answer) in said
        writer.close()


@pytest.mark.parametrize("name", [b"Upgrade", b"upgrade"])
async def test_a_request_that_offers_http2_keeps_its_body(name: bytes) -> None:
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "\r\nupgrade: x"}]}).encode()
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\n"
        b"HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n%b: h2c\r\nContent-Length: %d\r\n\r\n"
    )
    async with running_gateway(make_worker()) as gateway, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(gateway.url).port)
        writer.write(head % (name, len(body)))
        await writer.drain()
        writer.write(body)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()
