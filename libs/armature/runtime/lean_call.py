"""A streaming gRPC call on an event loop, without grpcio's threads: for the few streams that carry everything.

See `grpc_wire`. The peer is an ordinary gRPC server.
"""

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from armature.runtime.addresses import split_host_port
from armature.runtime.grpc_wire import GrpcCall
from armature.runtime.lean_stream import PING_AFTER_S, PING_TIMEOUT_S, LeanStream
from armature.runtime.news_gate import NewsGate

CONNECT_TIMEOUT_S = 3.0


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


class LeanCall(LeanStream):
    """One open call, made by `open_call`. `ended` is done with the reason when it is over; then `close` it."""

    def __init__(self, method: Method, listener: Listener) -> None:
        scheme = "https" if method.tls else "http"
        wire = GrpcCall(method.path, method.address, scheme=scheme, max_message_bytes=method.max_message_bytes)
        super().__init__(wire, method.ping_after_s, method.ping_timeout_s)
        self._listener = listener

    def _take(self, messages: list[bytes]) -> None:
        if messages:
            self._listener.on_messages(messages)

    def _on_writable(self) -> None:
        self._listener.on_writable()


class _Reader:
    """Hands messages on until that fails."""

    def __init__(self, take: Callable[[bytes], None]) -> None:
        self._take = take
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_messages(self, messages: list[bytes]) -> None:
        if self.failed.done():
            return
        try:
            for data in messages:
                self._take(data)
        except Exception as error:
            self.failed.set_exception(error)

    def on_writable(self) -> None:
        """All there is to send is sent."""


async def read_messages(
    method: Method, request: bytes, take: Callable[[bytes], None], gate: NewsGate | None = None
) -> str:
    """Call a method that answers one message with a stream of them, which `take` gets; why it has ended.

    They are read with those of other streams at the same `gate`.

    Raises:
        Exception: what `take` has raised; the call is over then.
    """
    reader = _Reader(take)
    try:
        call = await open_call(method, reader)
    except (OSError, TimeoutError) as error:
        return f"UNAVAILABLE: {error or 'it does not answer'}"
    gate = gate or NewsGate()
    gate.add(call)
    try:
        call.send(request, is_last=True)
        await asyncio.wait((call.ended, reader.failed), return_when=asyncio.FIRST_COMPLETED)
        if reader.failed.done():
            reader.failed.result()
        return call.ended.result()
    finally:
        reader.failed.cancel()
        gate.discard(call)
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
