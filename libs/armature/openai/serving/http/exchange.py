"""One HTTP exchange: reading a bounded body, writing the answer, noticing that the client has left.

Plain ASGI, and less than that for tokens: a streamed answer passes here once for each.
"""

import asyncio
import re
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from starlette.types import Receive, Scope, Send

from armature.openai.errors import ApiError, invalid
from armature.openai.serving.http.bodies import Body
from armature.openai.serving.http.protocol import CLOSE, Client
from armature.openai.tenancy.admission import current_admission

Headers = Sequence[tuple[bytes, bytes]]

JSON = (b"content-type", b"application/json")
EVENT_STREAM: Headers = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would collect events otherwise
)

PART_BYTES = 1 << 16
"""What is written before anybody looks whether the client takes it."""

_TIME = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*(s|ms)?", re.ASCII)


class ClientLeftError(Exception):
    """The client closed the connection before its request was complete."""


def header(scope: Scope, name: bytes) -> str:
    """The first header of this name; empty if there is none."""
    for key, value in scope["headers"]:
        if key == name:
            return value.decode("latin-1")
    return ""


def requested_timeout_s(scope: Scope) -> float | None:
    """How long the client waits for its answer, by its header `x-request-timeout` (`30`, `30s`, `1500ms`) or `timeout`.

    Raises:
        ApiError: 400, it is no time.
    """
    for name in ("x-request-timeout", "timeout"):
        text = header(scope, name.encode()).strip()
        if not text:
            continue
        said = _TIME.fullmatch(text)
        timeout_s = float(said[1]) * (0.001 if said[2] == "ms" else 1.0) if said else 0.0
        if timeout_s <= 0:
            raise invalid(name, "must be seconds above 0, like 30, 30s or 1500ms")
        return timeout_s
    return None


def check_headers(scope: Scope, max_body_bytes: int) -> None:
    """Refuse bodies that can't be JSON or are too large before they are read.

    Raises:
        ApiError: 415 or 413.
    """
    content_type = header(scope, b"content-type").partition(";")[0].strip().lower()
    if content_type not in ("", "application/json"):
        raise ApiError(
            415, f"The body must be application/json, not '{content_type[:80]}'", code="unsupported_media_type"
        )
    encoding = header(scope, b"content-encoding").strip().lower()
    if encoding not in ("", "identity"):
        raise ApiError(415, f"The body must not be compressed ('{encoding[:40]}')", code="unsupported_media_type")
    length = header(scope, b"content-length")
    if length.isdigit() and int(length[:20]) > max_body_bytes:
        raise body_too_large(max_body_bytes)


def body_too_large(max_body_bytes: int) -> ApiError:
    return ApiError(413, f"The body must not be larger than {max_body_bytes} bytes", code="body_too_large")


class Exchange:
    """One request and its answer.

    As an async context manager it cancels what runs inside when the client leaves, as who does not take its answer is
    made to: the cancellation goes no further, and `has_left` is true. Enter it only after the body has been read.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, *, headers: Headers) -> None:
        self.scope = scope
        self.headers = headers
        self.has_left = False
        self.has_begun = False
        """Whether a status has been sent."""
        self._receive = receive
        self._send = send
        self._is_complete = False
        self._client = Client.of(scope)

    async def read_body(self, body: Body, max_body_bytes: int, timeout_s: float) -> bytes:
        """The whole body, for which there is room in `body`.

        Raises:
            ApiError: 413 if it is too large, 408 if it does not come in time, 429 if there is no room.
            ClientLeftError: it ends early.
        """
        if (data := self._client.whole_body()) is not None:
            if len(data) > max_body_bytes:
                raise body_too_large(max_body_bytes)
            body.grow(len(data), is_last=True)
            return data
        whole = bytearray()
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        raise ClientLeftError
                    part: bytes = message.get("body", b"")
                    if len(whole) + len(part) > max_body_bytes:
                        raise body_too_large(max_body_bytes)
                    is_last = not message.get("more_body", False)
                    body.grow(len(part), is_last=is_last)
                    whole += part
                    if is_last:
                        return bytes(whole)
        except TimeoutError:
            raise ApiError(408, f"The body did not arrive within {timeout_s:g} s", code="request_timeout") from None

    async def discard_body(self, max_bytes: int, timeout_s: float) -> None:
        """Read on without keeping anything: a client that is still sending would not see its answer otherwise."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while max_bytes > 0:
                    message = await self._receive()
                    if message["type"] == "http.disconnect" or not message.get("more_body", False):
                        return
                    max_bytes -= len(message.get("body", b""))

    async def send_json(self, status: int, body: bytes, headers: Headers = ()) -> None:
        """A whole answer. A large one is written as the client takes it, which must not take for ever.

        Raises:
            ClientLeftError: it takes too long; the connection is ended.
        """
        first, size = body[:PART_BYTES], len(body)
        self._begin(status, (JSON, *self.headers, *headers), first, size)
        if size > PART_BYTES:
            try:
                async with asyncio.timeout(self._client.time_to_take_s(size)):
                    for start in range(PART_BYTES, size, PART_BYTES):
                        await self._write(body[start : start + PART_BYTES], is_last=False)
            except TimeoutError:
                self._client.break_off()
                raise ClientLeftError from None
        await self._write(b"", is_last=True)

    async def send_error(self, error: ApiError) -> None:
        """An error in OpenAI's shape, with Retry-After if there is a time to name."""
        extra: list[tuple[bytes, bytes]] = []
        if error.retry_after_s > 0:
            extra.append((b"retry-after", str(max(1, round(error.retry_after_s))).encode()))
        if error.status in (408, 413):  # part of the body is still coming: this connection is of no more use
            extra.append(CLOSE)
        await self.send_json(error.status, error.to_json(), extra)

    async def send_events(self, events: bytes, *, is_last: bool = False) -> None:
        """Some server-sent events; the head goes out with the first, so that errors before it keep their status."""
        if not self.has_begun:
            self._begin(200, (*EVENT_STREAM, *self.headers), events)
            events = b""
        if is_last or not self._client.takes_chunks:
            await self._write(events, is_last=is_last)
        elif events:
            self._client.write_chunk(events)

    def send_more(self, events: bytes) -> bool:
        """Some more server-sent events, at once; false: wait with the next ones until `send_events` has sent them."""
        if events and self.has_begun:
            self._client.write_chunk(events)
        elif events:
            self._begin(200, (*EVENT_STREAM, *self.headers), events)
        return self._client.takes_chunks

    async def _write(self, data: bytes, *, is_last: bool) -> None:
        self._is_complete = is_last
        await self._send({"type": "http.response.body", "body": data, "more_body": not is_last})

    def _leave(self) -> None:
        if not self._is_complete:
            self.has_left = True
            self._task.cancel()

    async def __aenter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._client.watch(self._leave)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> bool:
        self._client.watch(None)
        return self.has_left and kind is asyncio.CancelledError and self._task.uncancel() == 0

    def _begin(self, status: int, headers: Headers, body: bytes, size: int | None = None) -> None:
        self.has_begun = True
        admission = current_admission()
        limits = admission.headers() if admission is not None else ()
        self._client.begin(status, (*headers, *limits), body, size)
