"""Streams answered without grpcio's server, to its client."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import uvloop
from google.protobuf.wrappers_pb2 import BytesValue

from armature.runtime.addresses import split_host_port
from armature.runtime.channels import CHANNEL_OPTIONS, ChannelPool
from armature.runtime.errors import OverloadedError
from armature.runtime.lean_call import open_call
from armature.runtime.server import RpcServer
from armature.runtime.tls import TlsFiles
from tests.support.certificates import Authority
from tests.support.eventually import eventually

ECHO, TALK = "/t.Test/Echo", "/t.Test/Talk"


class Echo:
    """Sends everything back, and does as it is told; `left` counts calls that are over."""

    def __init__(self) -> None:
        self.left = 0
        self.heard: list[bytes] = []
        self.metadata: dict[str, str] = {}
        self.reads = asyncio.Event()

    async def __call__(self, requests: AsyncIterator[BytesValue], context: Any) -> AsyncIterator[BytesValue]:
        self.metadata = dict(context.invocation_metadata())
        try:
            async for request in requests:
                self.heard.append(request.value)
                if request.value == b"end":
                    return
                if request.value == b"full":
                    raise OverloadedError("no room: ü", retry_after_s=2.0)
                if request.value == b"wait":
                    await self.reads.wait()
                yield request
        finally:
            self.left += 1


class EchoTalk:
    """The same as a talk, which can't wait."""

    def __init__(self, echo: Echo, send: Callable[[BytesValue], None]) -> None:
        self._echo, self._send = echo, send

    def take(self, request: BytesValue) -> None:
        self._echo.heard.append(request.value)
        if request.value == b"full":
            raise OverloadedError("no room: ü", retry_after_s=2.0)
        self._send(request)

    def close(self) -> None:
        self._echo.left += 1


class Serving:
    def __init__(self, echo: Echo, tls: TlsFiles | None) -> None:
        self.echo, self._tls = echo, tls
        self.server = RpcServer("127.0.0.1", tls=tls)
        echo_of: Callable[[Any, Any], AsyncIterator[Any]] = echo.__call__
        self.server.stream_lean(ECHO, echo_of, BytesValue.FromString)
        self.server.talk_lean(TALK, lambda send: EchoTalk(echo, send), BytesValue.FromString)
        self._channels: list[grpc.aio.Channel] = []

    def call(self, path: str = ECHO, **options: Any) -> Any:
        """By grpcio's client, on a connection of its own."""
        address, more = (
            self.server.stream_address,
            [*CHANNEL_OPTIONS, *(self._tls.channel_options() if self._tls else ())],
        )
        if self._tls is None:
            self._channels.append(grpc.aio.insecure_channel(address, more))
        else:
            self._channels.append(grpc.aio.secure_channel(address, self._tls.channel_credentials(), more))
        return self._channels[-1].stream_stream(path, BytesValue.SerializeToString, BytesValue.FromString)(**options)

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()
        await self.server.stop(0)


@asynccontextmanager
async def serving(tls: TlsFiles | None = None) -> AsyncIterator[Serving]:
    made = Serving(Echo(), tls)
    await made.server.start()
    try:
        yield made
    finally:
        await made.close()


async def sends_and_gets(tls: TlsFiles | None, path: str) -> None:
    sizes = [0, 1, 100, 16_000, 70_000, 0, 3_000_000, *([500] * 300), 1_000_000]
    async with serving(tls) as made:
        call = made.call(path, metadata=(("traceparent", "00-1-2-3"),))
        sent = [bytes([number % 256]) * size for number, size in enumerate(sizes)]

        async def send() -> None:
            for data in sent:
                await call.write(BytesValue(value=data))
            await call.done_writing()

        sending = asyncio.create_task(send())
        assert [answer.value async for answer in call] == sent
        await sending
        assert await call.code() is grpc.StatusCode.OK
        assert made.echo.left == 1
        assert made.echo.metadata.get("traceparent") == ("00-1-2-3" if path == ECHO else None)


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("is_secure", [False, True])
@pytest.mark.parametrize("path", [ECHO, TALK])
def test_messages_of_all_sizes_come_back_in_order(
    loop: Callable[[], asyncio.AbstractEventLoop], is_secure: bool, path: str, tmp_path: Path
) -> None:
    tls = Authority(tmp_path).issue("both") if is_secure else None
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(sends_and_gets(tls, path))


async def ended(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        while await call.read() is not grpc.aio.EOF:
            pass
    return raised.value.code(), str(raised.value.details())


async def test_calls_end_with_the_status_that_the_handler_gives_them() -> None:
    async with serving() as made:
        done = made.call()
        await done.write(BytesValue(value=b"end"))
        assert await done.read() is grpc.aio.EOF
        assert await done.code() is grpc.StatusCode.OK
        full = made.call()
        await full.write(BytesValue(value=b"full"))
        assert await ended(full) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "no room: ü")
        assert dict(await full.trailing_metadata())["retry-after-s"] == "2"
        other = made.call("/t.Test/Other")
        assert (await ended(other))[0] is grpc.StatusCode.UNIMPLEMENTED
        late = made.call(timeout=0.2)
        await late.write(BytesValue(value=b"wait"))
        assert (await ended(late))[0] is grpc.StatusCode.DEADLINE_EXCEEDED
        await eventually(lambda: made.echo.left == 3)


async def test_what_a_talk_raises_ends_its_call() -> None:
    async with serving() as made:
        full = made.call(TALK)
        for word in (b"hello", b"full", b"too late"):
            await full.write(BytesValue(value=word))
        assert await ended(full) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "no room: ü")
        assert dict(await full.trailing_metadata())["retry-after-s"] == "2"
        assert made.echo.heard == [b"hello", b"full"]
        late = made.call(TALK, timeout=0.2)
        assert (await ended(late))[0] is grpc.StatusCode.DEADLINE_EXCEEDED
        await eventually(lambda: made.echo.left == 2)


@pytest.mark.parametrize("path", [ECHO, TALK])
async def test_what_is_no_message_is_refused(path: str) -> None:
    async with serving() as made:
        channel = grpc.aio.insecure_channel(made.server.stream_address)
        call: Any = channel.stream_stream(path)()
        await call.write(b"\xff\xff")
        assert (await ended(call))[0] is grpc.StatusCode.INVALID_ARGUMENT
        await channel.close()


@pytest.mark.parametrize("path", [ECHO, TALK])
async def test_a_caller_that_leaves_ends_the_handler_and_a_stopping_server_its_calls(path: str) -> None:
    async with serving() as made:
        left, cut = made.call(path), made.call(path)
        for call in (left, cut):
            await call.write(BytesValue(value=b"hello"))
            assert (await call.read()).value == b"hello"
        left.cancel()
        await eventually(lambda: made.echo.left == 1)
        await made.server.stop(0)
        assert await ended(cut) == (grpc.StatusCode.UNAVAILABLE, "the server stops")
        assert made.echo.left == 2


async def test_a_connection_carries_one_call_and_the_next_comes_on_another() -> None:
    async with serving() as made:
        channel = grpc.aio.insecure_channel(made.server.stream_address)
        method: Any = channel.stream_stream(ECHO, BytesValue.SerializeToString, BytesValue.FromString)
        for number in range(3):
            call = method(wait_for_ready=True)
            await call.write(BytesValue(value=b"%d" % number))
            assert (await call.read()).value == b"%d" % number
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF
        await channel.close()


class Deaf:
    def __init__(self) -> None:
        self.num_messages = 0

    def on_messages(self, messages: list[bytes]) -> None:
        self.num_messages += len(messages)

    def on_writable(self) -> None: ...


async def test_a_caller_that_does_not_read_is_not_read_from() -> None:
    async with serving() as made:
        caller = Deaf()
        call = await open_call(ChannelPool().method(made.server.stream_address, TALK), caller)
        call.hold()
        block, sent = BytesValue(value=bytes(1 << 20)).SerializeToString(), 0
        while call.is_writable and sent < 200:
            call.send(block)
            sent += 1
            await asyncio.sleep(0.001)
        assert len(made.echo.heard) < sent < 200
        call.release()
        await eventually(lambda: len(made.echo.heard) == caller.num_messages == sent)
        call.close()


async def test_a_handler_that_does_not_listen_stops_its_caller() -> None:
    async with serving() as made:
        call = await open_call(ChannelPool().method(made.server.stream_address, ECHO), Deaf())
        call.send(BytesValue(value=b"wait").SerializeToString())
        block, sent = BytesValue(value=bytes(1 << 20)).SerializeToString(), 0
        while call.is_writable and sent < 200:
            call.send(block)
            sent += 1
            await asyncio.sleep(0.001)
        assert 8 < sent < 100
        made.echo.reads.set()
        await eventually(lambda: len(made.echo.heard) == sent + 1)
        call.close()


async def test_who_speaks_something_else_is_let_go() -> None:
    async with serving() as made:
        reader, writer = await asyncio.open_connection(*split_host_port(made.server.stream_address))
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        async with asyncio.timeout(10):
            while await reader.read(4096):
                pass
        writer.close()
