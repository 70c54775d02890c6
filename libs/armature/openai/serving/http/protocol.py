"""uvicorn's HTTP/1.1 connection, with a short way back for its answers, and bounds on what a client may do.

That is how long it may be silent, how much it sends before there is a request, how many requests it sends before it has
the answers to others, and how long it takes none of an answer that waits.
"""

import asyncio
import logging
import re
import weakref
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from armature.openai.errors import ApiError

log = logging.getLogger(__name__)

MAX_HEAD_BYTES = 64 * 1024
"""Of a request's line and headers; those that come within one read may be longer."""

MAX_REQUESTS_AHEAD = 64
"""That wait for the answers before them."""

WRITE_TIMEOUT_S = 30.0
LEAST_BYTES_PER_S = 64 * 1024
"""At which a client must take whole answers; a stream's time is bounded by its request's."""

CLOSE = (b"connection", b"close")
"""The header of an answer after which nothing more is read."""

_OFFER = re.compile(rb"\r\nupgrade(?=:)", re.IGNORECASE)
_NO_OFFER = b"\r\nx-offer"
"""As long as what it replaces."""

_CLIENT = "armature.client"
"""The extension of an ASGI scope by which its request's `Client` is found."""


class Client:
    """Who has sent a request: what ASGI has no words for, or a message, a coroutine and a task too many."""

    __slots__ = ("_connection", "_cycle")

    def __init__(self, connection: "BoundedProtocol", cycle: RequestResponseCycle) -> None:
        self._connection = connection
        self._cycle = cycle

    @staticmethod
    def of(scope: Scope) -> "Client":
        """Of a request that came over a `BoundedProtocol` and is being answered."""
        connection, cycle = scope["extensions"][_CLIENT]
        return Client(connection(), cycle())

    def watch(self, on_leaving: Callable[[], None] | None) -> None:
        """Have this called once if the client leaves; None: nobody wants to know any more."""
        self._connection.on_leaving = on_leaving
        self._cycle.flow.resume_reading()  # or nothing would be heard of it

    def whole_body(self) -> bytes | None:
        """The request's body, if all of it has come; then nothing is left to receive."""
        cycle = self._cycle
        if cycle.more_body or cycle.disconnected:
            return None
        body, cycle.body = bytes(cycle.body), bytearray()
        return body

    def time_to_take_s(self, size_bytes: int) -> float:
        """Within which the client must take a whole answer: it may spend some of it on nothing."""
        return self._connection.write_timeout_s + size_bytes / self._connection.least_bytes_per_s

    def break_off(self) -> None:
        """The client is too slow: end its connection, whatever waits for it."""
        self._connection.break_off()

    def begin(self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes, size: int | None = None) -> None:
        """Send the head of the answer and the first of its body in one write.

        `size` is that of the whole body; None: nobody knows, it is chunked.
        """
        cycle = self._cycle
        if cycle.disconnected:
            return
        wants_body = cycle.scope["method"] != "HEAD"
        cycle.response_started, cycle.waiting_for_100_continue = True, False
        cycle.chunked_encoding = size is None and wants_body
        if CLOSE in headers:
            cycle.keep_alive = False
        elif not cycle.keep_alive:
            headers = (*headers, CLOSE)
        parts = [STATUS_LINE[status], *[b"%b: %b\r\n" % header for header in headers]]
        if size is None:
            parts += b"transfer-encoding: chunked\r\n\r\n", _chunk(body)
        else:
            cycle.expected_content_length = size - len(body)
            parts += b"content-length: %d\r\n\r\n" % size, body
        cycle.transport.write(b"".join(parts if wants_body else parts[:-1]))

    @property
    def takes_chunks(self) -> bool:
        """Whether a streamed answer can be written on at once: its head is sent, the client neither slow nor gone."""
        cycle = self._cycle
        return not (cycle.flow.write_paused or cycle.disconnected) and bool(cycle.chunked_encoding)

    def write_chunk(self, data: bytes) -> None:
        """Write some of a streamed answer."""
        self._cycle.transport.write(_chunk(data))


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


class _TooFarAheadError(Exception):
    """The client sends request after request."""


class BoundedProtocol(HttpToolsProtocol):
    """Closes connections whose request does not begin or whose headers do not end within the time for idle ones, and
    breaks off those whose client does not take what is written within `write_timeout_s`.

    Offers to speak another protocol are ignored, as a server may. uvicorn loses the bodies of such requests, and some
    clients (that of Java's library, for one) make every request such an offer.
    """

    def __init__(
        self,
        *args: Any,
        write_timeout_s: float = WRITE_TIMEOUT_S,
        least_bytes_per_s: float = LEAST_BYTES_PER_S,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.write_timeout_s = write_timeout_s
        self.least_bytes_per_s = least_bytes_per_s
        self._write_timer: asyncio.TimerHandle | None = None
        """Runs while more is waiting for the client than may, and when nothing but its taking it is awaited."""
        self._awaits_head = True
        self._heads = 0
        """How many are complete."""
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self.on_leaving: Callable[[], None] | None = None
        """Of the request that is being answered."""
        self.on_lost: Callable[[], None] | None = None
        """Called when the connection is no more."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_timer()
        self._forget_write_timer()
        super().connection_lost(exc)
        if self.on_leaving is not None:
            self.on_leaving()
        if self.on_lost is not None:
            self.on_lost()

    def data_received(self, data: bytes) -> None:
        heads, is_head = self._heads, self._awaits_head
        super().data_received(_without_offer(data) if is_head else data)
        if self._awaits_head and self._heads == heads and not self.transport.is_closing():
            self._head_bytes += len(data) if is_head else 0  # the end of a body is no head
            if self._head_bytes > MAX_HEAD_BYTES:
                message = f"The request's headers must not be larger than {MAX_HEAD_BYTES} bytes"
                self._refuse(ApiError(431, message, code="headers_too_large"))
            elif self._head_timer is None:
                self._await_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_taking()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._forget_write_timer()
        self._take_leave()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._take_leave()

    def timeout_keep_alive_handler(self) -> None:
        self._close()

    def send_400_response(self, msg: str) -> None:
        """The parser can't go on."""
        self._refuse(ApiError(400, "This is not a valid HTTP/1.1 request", code="invalid_http"))

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= MAX_REQUESTS_AHEAD:
            raise _TooFarAheadError  # which the parser tells as its own failure
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._awaits_head, self._head_bytes = False, 0
        self._heads += 1
        self._forget_timer()
        super().on_headers_complete()
        # Weak, since both hold the scope: in a circle they would stay until the collector comes by.
        found = {_CLIENT: (weakref.ref(self), weakref.ref(self.cycle))}
        self.scope["extensions"] = found  # pyright: ignore[reportGeneralTypeIssues]

    def on_message_complete(self) -> None:
        self._awaits_head = True
        super().on_message_complete()

    def _refuse(self, error: ApiError) -> None:
        """End the connection, and say why unless that would fall into an answer."""
        if self.cycle is None or self.cycle.response_complete:  # pyright: ignore[reportUnnecessaryComparison]
            self.transport.write(_whole_response(error))
        self.transport.close()
        self._take_leave()

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(self.timeout_keep_alive, self._give_up)

    def _forget_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        self._head_timer = None
        # A client may have begun its next request early: the answer to the one before comes first.
        if self.cycle is None or self.cycle.response_complete:  # pyright: ignore[reportUnnecessaryComparison]
            self._close()

    def _await_taking(self) -> None:
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.write_timeout_s, self.break_off)

    def _forget_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def break_off(self) -> None:
        """The client has not taken what it had time for."""
        self._forget_write_timer()
        log.info("a client did not take its answer in time")
        self.transport.abort()

    def _take_leave(self) -> None:
        """A connection that is closed stays until its client has taken all: that too must happen in time."""
        if self.transport.is_closing() and self.transport.get_write_buffer_size():
            self._await_taking()

    def _close(self) -> None:
        """End a connection that is idle; closed only, one whose client does not read would stay for ever."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()


def _whole_response(error: ApiError) -> bytes:
    body = error.to_json()
    head = (
        f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body


def _without_offer(data: bytes) -> bytes:
    end = data.find(b"\r\n\r\n")
    head = data if end < 0 else data[:end]
    return _OFFER.sub(_NO_OFFER, head) + data[len(head) :] if _OFFER.search(head) else data
