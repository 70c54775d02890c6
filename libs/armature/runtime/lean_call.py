"""A streaming gRPC call on an event loop, without grpcio's threads: for the few streams that carry everything.

See `grpc_wire`. The peer is an ordinary gRPC server. Ends when the server ends the call, the connection breaks, or the
peer gives no sign of life, not even when pinged.
"""

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

from armature.runtime.addresses import split_host_port
from armature.runtime.grpc_wire import GrpcCall

CONNECT_TIMEOUT_S = 3.0
PING_AFTER_S = 10.0
"""Servers answer pings that come faster than every 5 s by closing the connection."""
PING_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True)
class Method:
    """One method of one server."""

    address: str
    path: str
    """`/armature.v1.Decode/Stream`."""
    max_message_bytes: int
    tls: ssl.SSLContext | None = None
    tls_name: str = ""
    """What the server's certificate must be for, if not its host."""
    ping_after_s: float = PING_AFTER_S
    ping_timeout_s: float = PING_TIMEOUT_S


class Listener(Protocol):
    """Whoever holds a call; called on the event loop."""

    def on_messages(self, messages: list[bytes]) -> None:
        """These have arrived at once."""
        ...

    def on_writable(self) -> None:
        """The peer takes more, after it did not for a while."""
        ...


class LeanCall(asyncio.Protocol):
    """One open call, made by `open_call`. `ended` is done with the reason when it is over; then `close` it."""

    def __init__(self, method: Method, listener: Listener) -> None:
        loop = asyncio.get_running_loop()
        scheme = "https" if method.tls else "http"
        self._call = GrpcCall(method.path, method.address, scheme=scheme, max_message_bytes=method.max_message_bytes)
        self._method = method
        self._listener = listener
        self._transport: asyncio.Transport | None = None
        self._is_paused = False
        self._has_heard = self._is_pinged = False
        self._later: Callable[..., asyncio.TimerHandle] = loop.call_later
        self._timer: asyncio.TimerHandle | None = None
        self.ended: asyncio.Future[str] = loop.create_future()

    @property
    def is_writable(self) -> bool:
        """Whether the peer takes what is sent; otherwise `on_writable` says when it does."""
        return not (self._is_paused or self._call.is_blocked or self.ended.done())

    def send(self, message: bytes, *, is_last: bool = False) -> None:
        """Send a message now, perhaps the last; for order's sake it waits here if the peer takes nothing."""
        self._call.send(message, is_last=is_last)
        self._flush()

    def close(self) -> None:
        """Cancel the call if it still runs, and drop the connection."""
        if self._timer is not None:
            self._timer.cancel()
        self._call.cancel()
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._flush()
        self._timer = self._later(self._method.ping_after_s, self._look)

    def data_received(self, data: bytes) -> None:
        self._has_heard = True
        call = self._call
        was_blocked = call.is_blocked
        if messages := call.feed(data):
            self._listener.on_messages(messages)
        self._flush()
        if call.ended is not None:
            self._end(call.ended)
        elif was_blocked and self.is_writable:
            self._listener.on_writable()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(f"UNAVAILABLE: the connection was lost{f': {exc}' if exc else ''}")

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        if self.is_writable:
            self._listener.on_writable()

    def _look(self) -> None:
        """Every now and then: is the peer still there?"""
        if self._has_heard:
            self._has_heard = self._is_pinged = False
            self._timer = self._later(self._method.ping_after_s, self._look)
        elif self._is_pinged:
            self._end("UNAVAILABLE: the peer gives no sign of life")
        else:
            self._is_pinged = True
            self._call.ping()
            self._flush()
            self._timer = self._later(self._method.ping_timeout_s, self._look)

    def _flush(self) -> None:
        output = self._call.take_output()
        if output and self._transport is not None and not self._transport.is_closing():
            self._transport.write(output)

    def _end(self, reason: str) -> None:
        if not self.ended.done():
            self.ended.set_result(reason)


class _Reader:
    """Hands messages on until that fails."""

    def __init__(self, take: Callable[[bytes], None]) -> None:
        self._take = take
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_message(self, data: bytes) -> None:
        if self.failed.done():
            return
        try:
            self._take(data)
        except Exception as error:
            self.failed.set_exception(error)

    def on_writable(self) -> None:
        """All there is to send is sent."""


async def read_messages(method: Method, request: bytes, take: Callable[[bytes], None]) -> str:
    """Call a method that answers one message with a stream of them, which `take` gets; why it has ended.

    Raises:
        Exception: what `take` has raised; the call is over then.
    """
    reader = _Reader(take)
    try:
        call = await open_call(method, reader)
    except (OSError, TimeoutError) as error:
        return f"UNAVAILABLE: {error or 'it does not answer'}"
    try:
        call.send(request, is_last=True)
        await asyncio.wait((call.ended, reader.failed), return_when=asyncio.FIRST_COMPLETED)
        if reader.failed.done():
            reader.failed.result()
        return call.ended.result()
    finally:
        reader.failed.cancel()
        call.close()


async def open_call(method: Method, listener: Listener) -> LeanCall:
    """Connect and begin the call; nothing has been heard of the server yet.

    Raises:
        OSError: there is no way to it, or it shows no certificate of the cell.
        TimeoutError: it does not answer.
    """
    host, port = split_host_port(method.address)
    name = (method.tls_name or host) if method.tls else None
    async with asyncio.timeout(CONNECT_TIMEOUT_S):
        _, call = await asyncio.get_running_loop().create_connection(
            lambda: LeanCall(method, listener), host, port, ssl=method.tls, server_hostname=name
        )
    return call
