"""Calls without grpcio's client, against its server."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import uvloop

from armature.runtime.lean_call import LeanCall, Method, open_call, read_messages
from armature.runtime.server import SERVER_OPTIONS
from armature.runtime.tls import TlsFiles
from tests.support.certificates import Authority
from tests.support.eventually import eventually
from tests.support.wire import Wire

MAX_MESSAGE_BYTES = 8 * 1024 * 1024


@dataclass
class Server:
    """Sends everything back, and what `say` has for a message besides; `left` counts calls that are over."""

    address: str = ""
    tls: TlsFiles | None = None
    left: int = 0
    reads: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def method(self) -> Method:
        context = self.tls.client_context() if self.tls else None
        return Method(self.address, "/t.Test/Echo", MAX_MESSAGE_BYTES, tls=context)

    async def echo(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        try:
            async for data in requests:
                if data == b"end":
                    return
                if data == b"fail":
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "as asked: ü")
                if data == b"wait":
                    await self.reads.wait()
                yield data
        finally:
            self.left += 1

    async def count(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        for number in range(int(request)):
            yield str(number).encode()


@asynccontextmanager
async def serving(tls: TlsFiles | None = None) -> AsyncIterator[Server]:
    made = Server(tls=tls)
    server = grpc.aio.server(options=SERVER_OPTIONS)
    handlers = {
        "Echo": grpc.stream_stream_rpc_method_handler(made.echo),
        "Count": grpc.unary_stream_rpc_method_handler(made.count),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.Test", handlers),))
    address = "127.0.0.1:0"
    port = server.add_secure_port(address, tls.server_credentials()) if tls else server.add_insecure_port(address)
    await server.start()
    made.address = f"127.0.0.1:{port}"
    try:
        yield made
    finally:
        await server.stop(0)


@dataclass
class Heard:
    """A listener that keeps everything."""

    messages: list[bytes] = field(default_factory=list[bytes])
    writable: asyncio.Event = field(default_factory=asyncio.Event)

    def on_messages(self, messages: list[bytes]) -> None:
        self.messages += messages

    def on_writable(self) -> None:
        self.writable.set()


@asynccontextmanager
async def calling(method: Method) -> AsyncIterator[tuple[LeanCall, Heard]]:
    heard = Heard()
    call = await open_call(method, heard)
    try:
        yield call, heard
    finally:
        call.close()


async def sends_and_gets(tls: TlsFiles | None) -> None:
    sizes = [0, 1, 100, 600, 16_000, 70_000, 0, 3_000_000, *([500] * 500), 1_000_000]
    sent = [bytes([number % 256]) * size for number, size in enumerate(sizes)]
    async with serving(tls) as server, calling(server.method) as (call, heard):
        for data in sent:
            while not call.is_writable:
                heard.writable.clear()
                await heard.writable.wait()
            call.send(data)
        await eventually(lambda: len(heard.messages) == len(sent), what="all echoes")
        assert heard.messages == sent
        assert not call.ended.done()


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("is_secure", [False, True])
def test_messages_of_all_sizes_come_back_in_order(
    loop: Callable[[], asyncio.AbstractEventLoop], is_secure: bool, tmp_path: Path
) -> None:
    tls = Authority(tmp_path).issue("both") if is_secure else None
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(sends_and_gets(tls))


async def leaves_unread() -> None:
    async with serving() as server, calling(server.method) as (held, heard), calling(server.method) as (other, others):
        held.send(b"first")
        await eventually(lambda: heard.messages, what="the echo")
        held.hold()
        held.hold()
        held.send(b"second")
        for number in range(20):
            other.send(b"round trip")
            await eventually(lambda number=number: len(others.messages) > number, what="the other's echo")
        assert heard.messages == [b"first"]
        held.release()
        await eventually(lambda: len(heard.messages) == 2, what="what was held")
        held.release()
        held.close()
        held.hold()


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_what_comes_while_it_is_held_is_read_afterwards(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(leaves_unread())


async def test_it_tells_why_the_server_has_ended_the_call() -> None:
    async with serving() as server:
        for last, reason in ((b"end", "ended by its server"), (b"fail", "UNAVAILABLE: as asked: ü")):
            async with calling(server.method) as (call, heard):
                call.send(b"first")
                call.send(last)
                assert reason in await call.ended
                assert heard.messages == [b"first"]
                assert not call.is_writable
        async with calling(replace(server.method, path="/t.Test/Other")) as (call, _):
            assert "UNIMPLEMENTED" in await call.ended


async def test_one_message_is_answered_with_a_stream() -> None:
    heard = list[bytes]()
    async with serving() as server:
        method = replace(server.method, path="/t.Test/Count")
        assert "ended by its server" in await read_messages(method, b"3", heard.append)
        assert heard == [b"0", b"1", b"2"]
        with pytest.raises(ValueError, match="invalid literal"):
            await read_messages(method, b"3", lambda data: heard.insert(int(data + b"x"), data))
    assert "UNAVAILABLE" in await read_messages(method, b"3", heard.append)


async def test_closing_cancels_the_call_at_the_server() -> None:
    async with serving() as server:
        async with calling(server.method) as (call, heard):
            call.send(b"hello")
            await eventually(lambda: heard.messages == [b"hello"])
        await eventually(lambda: server.left == 1)


async def test_who_does_not_read_stops_the_writer_and_loses_nothing() -> None:
    async with serving() as server, calling(server.method) as (call, heard):
        call.send(b"wait")
        sent = 0
        while call.is_writable:
            call.send(bytes(10_000))
            sent += 1
            await asyncio.sleep(0)
        assert not heard.writable.is_set()
        server.reads.set()
        await eventually(lambda: len(heard.messages) == sent + 1)
        assert heard.writable.is_set()


async def test_a_silent_peer_is_noticed_and_a_cut_one_at_once() -> None:
    async with serving() as server, Wire.to(server.address) as wire:
        method = replace(server.method, address=wire.address, ping_after_s=0.05, ping_timeout_s=0.2)
        async with calling(method) as (call, heard):
            call.send(b"hello")
            await eventually(lambda: heard.messages == [b"hello"])
            wire.silence()
            assert "no sign of life" in await call.ended
        wire.restore()
        async with calling(replace(method, ping_after_s=60.0)) as (call, heard):
            call.send(b"hello")
            await eventually(lambda: heard.messages == [b"hello"])
            wire.cut()
            assert "connection was lost" in await call.ended


async def test_nobody_there_and_no_certificate_are_errors_of_opening(tmp_path: Path) -> None:
    async with serving(Authority(tmp_path).issue("server")) as server:
        stranger = Authority(tmp_path, "other").issue("stranger")
        with pytest.raises(OSError, match=r"(?i)certificate"):
            await open_call(replace(server.method, tls=stranger.client_context()), Heard())
        address = server.address
    with pytest.raises(OSError, match=r"(?i)connect"):
        await open_call(Method(address, "/t.Test/Echo", MAX_MESSAGE_BYTES), Heard())
