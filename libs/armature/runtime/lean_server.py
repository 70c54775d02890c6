"""Answers streaming methods without grpcio's threads, on a port of its own: for the few streams that carry everything.

See `grpc_wire`. Clients are ordinary gRPC clients, and handlers those of ordinary servicers: asynchronous generators of
messages and a context. What is answered without waiting is better a `Talk`, which hears of messages where they arrive,
no task being woken for them. A connection carries one call; everything else a process serves is with grpcio.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import grpc

from armature.runtime.errors import StartError
from armature.runtime.grpc_wire import GrpcAnswer
from armature.runtime.lean_stream import PING_AFTER_S, PING_TIMEOUT_S, LeanStream

MAX_CONNECTIONS = 4096
"""Beyond it connections are closed at once."""
LINGER_S = 2.0
"""For a client to close the connection whose call is answered: closed from here with something of the client's unread,
the answer could be lost on its way."""


Stream = Callable[[Any, Any], AsyncIterator[Any]]
"""A handler: takes an iterator of requests and a context."""


class Talk(Protocol):
    """One call, handled message by message; at its end it is closed."""

    def take(self, request: Any) -> None:
        """A message has come; what this raises ends the call as it would end a handler's."""
        ...

    def close(self) -> None: ...


Open = Callable[[Callable[[Any], None]], Talk]
"""Begins a call, given what sends a message to its client."""


def talking(begin: Open) -> Stream:
    """The handler of a method that is a talk."""

    async def handler(requests: "_Requests", context: Any) -> AsyncIterator[Any]:
        talk = begin(requests.answer)
        try:
            await requests.listen(talk.take)
        finally:
            talk.close()
        for response in ():  # it is a generator, as every handler of a stream
            yield response

    return handler


@dataclass(frozen=True, slots=True)
class Served:
    """One method: how it is handled, and how its requests are read."""

    handler: Stream
    read: Callable[[bytes], Any]


class LeanServer:
    """Listens from `start` to `stop`."""

    def __init__(self, max_message_bytes: int) -> None:
        self.methods: dict[str, Served] = {}
        """By path, `/armature.v1.Router/Route`."""
        self.max_message_bytes = max_message_bytes
        self.calls: set[asyncio.Task[None]] = set()
        self.connections: set[_Connection] = set()
        self._listening: asyncio.Server | None = None

    async def start(self, host: str, port: int, tls: ssl.SSLContext | None) -> int:
        """Listen; on which port.

        Raises:
            StartError: the port is taken or the host is none of this machine.
        """
        loop = asyncio.get_running_loop()
        try:
            self._listening = await loop.create_server(lambda: _Connection(self), host, port, ssl=tls)
        except OSError as error:
            raise StartError(f"can't listen on {host}:{port} ({error.strerror}): set another port") from error
        return self._listening.sockets[0].getsockname()[1]

    async def stop(self, grace_s: float) -> None:
        """Take no more connections, and end calls as unavailable that have not ended within `grace_s`."""
        if self._listening is not None:
            self._listening.close()
        if self.calls and grace_s:
            await asyncio.wait(self.calls, timeout=grace_s)
        for call in self.calls:
            call.cancel()
        await asyncio.gather(*self.calls, return_exceptions=True)
        for connection in list(self.connections):
            connection.close()


class _Context:
    """What handlers use of a `grpc.aio.ServicerContext`."""

    def __init__(self, wire: GrpcAnswer) -> None:
        self._metadata = tuple(wire.metadata)
        self.status: tuple[grpc.StatusCode, str, tuple[tuple[str, str], ...]] = grpc.StatusCode.OK, "", ()

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata

    def code(self) -> grpc.StatusCode:
        return self.status[0]

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: tuple[tuple[str, str], ...] = ()
    ) -> NoReturn:
        self.status = code, details, trailing_metadata
        raise grpc.aio.AbortError(details)


class _Requests:
    """What a handler gets: requests to iterate over, or to be told of. Until they are taken, no more than fits the
    stream's window comes."""

    def __init__(self, connection: "_Connection", read: Callable[[bytes], Any]) -> None:
        self._connection, self._read = connection, read

    async def __aiter__(self) -> AsyncIterator[Any]:
        connection = self._connection
        while await connection.has_arrived():
            while connection.inbox:
                yield self._read(connection.inbox.popleft())

    async def listen(self, take: Callable[[Any], None]) -> None:
        """Have `take` told of each, where it arrives, until the last, as long as the client takes answers.

        Raises:
            Exception: what `take` has raised.
        """
        await self._connection.listen(lambda message: take(self._read(message)))

    def answer(self, response: Any) -> None:
        """Send a message."""
        self._connection.send(response.SerializeToString())


class _Connection(LeanStream):
    """A connection, and the one call on it."""

    def __init__(self, server: LeanServer) -> None:
        self._answer = GrpcAnswer(max_message_bytes=server.max_message_bytes)
        super().__init__(self._answer, PING_AFTER_S, PING_TIMEOUT_S)
        self._server = server
        self.inbox: deque[bytes] = deque()
        self._arrived, self._writable = asyncio.Event(), asyncio.Event()
        self._listener: Callable[[bytes], None] | None = None
        self._heard_out: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the listener has heard all, or has raised."""
        self._call: asyncio.Task[None] | None = None
        self.ended.add_done_callback(self._over)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._server.connections.add(self)
        if len(self._server.connections) > MAX_CONNECTIONS:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._server.connections.discard(self)
        self.close()

    def data_received(self, data: bytes) -> None:
        if self._answer.ended is None:
            super().data_received(data)

    def _take(self, messages: list[bytes]) -> None:
        self.inbox += messages
        if self._listener is not None:
            self._tell(self._listener)
        elif messages or self._answer.is_heard_out:
            self._arrived.set()
        if self._call is None and self._answer.path:
            self._call = asyncio.create_task(self._serve(), name=f"call of {self._answer.path}")
            self._server.calls.add(self._call)
            self._call.add_done_callback(self._server.calls.discard)

    def _on_writable(self) -> None:
        self._writable.set()
        if self._listener is not None:
            self._tell(self._listener)
            self._flush()

    def _tell(self, listener: Callable[[bytes], None]) -> None:
        if self._heard_out.done():
            return
        try:
            while self.inbox and self.is_writable:
                listener(self.inbox.popleft())
        except Exception as error:
            self._heard_out.set_exception(error)
            return
        if not self.inbox:
            self._answer.grant()
            if self._answer.is_heard_out:
                self._heard_out.set_result(None)

    async def listen(self, listener: Callable[[bytes], None]) -> None:
        """Have it told of messages until the last, or until it raises."""
        self._listener = listener
        try:
            self._tell(listener)
            self._flush()
            await self._heard_out
        finally:
            self._listener = None

    async def has_arrived(self) -> bool:
        """Wait until the inbox, which is empty, has something; False: nothing comes any more."""
        self._answer.grant()
        self._flush()
        while not self.inbox:
            if self._answer.is_heard_out:
                return False
            self._arrived.clear()
            await self._arrived.wait()
        return True

    def _look(self) -> None:
        super()._look()
        if self._call is None and not self.ended.done():
            self._end("UNAVAILABLE: nothing was called")

    def _over(self, ended: asyncio.Future[str]) -> None:
        if self._call is not None:
            self._call.cancel()
        if self._answer.is_answered:
            self._later(LINGER_S, self.close)
        else:
            self.close()

    async def _serve(self) -> None:
        context, status = _Context(self._answer), grpc.StatusCode
        served = self._server.methods.get(self._answer.path)
        try:
            if served is None:
                context.status = status.UNIMPLEMENTED, "this port serves no such method", ()
            else:
                async with asyncio.timeout(self._answer.timeout_s):
                    await self._respond(served, context)
        except TimeoutError:
            context.status = status.DEADLINE_EXCEEDED, "the deadline has passed", ()
        except grpc.aio.AbortError:
            """The status says why."""
        except asyncio.CancelledError:
            context.status = status.UNAVAILABLE, "the server stops", ()
            raise
        finally:
            self._answer.finish(*context.status)
            self._flush()
            if self._answer.ended is not None:
                self._end(self._answer.ended)

    async def _respond(self, served: Served, context: _Context) -> None:
        responses: Any = served.handler(_Requests(self, served.read), context)
        async with aclosing(responses):
            async for response in responses:
                while not self.is_writable:
                    self._writable.clear()
                    await self._writable.wait()
                self.send(response.SerializeToString())
