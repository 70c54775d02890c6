"""One stream of gRPC messages on an event loop, without grpcio's threads: what is the same for both sides.

It ends with the call, with its connection, or when the peer gives no sign of life, not even when pinged.
"""

import asyncio
from abc import abstractmethod
from collections.abc import Callable
from typing import cast

from armature.runtime.http2_stream import Http2Stream

PING_AFTER_S = 10.0
"""Servers answer pings that come faster than every 5 s by closing the connection."""
PING_TIMEOUT_S = 3.0


class LeanStream(asyncio.Protocol):
    """Carries what `wire` reads and writes. `ended` is done with the reason when it is over; then `close` it."""

    def __init__(self, wire: Http2Stream, ping_after_s: float, ping_timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        self._wire = wire
        self._ping_after_s, self._ping_timeout_s = ping_after_s, ping_timeout_s
        self._transport: asyncio.Transport | None = None
        self._is_paused = False
        self._has_heard = self._is_pinged = False
        self._later: Callable[..., asyncio.TimerHandle] = loop.call_later
        self._timer: asyncio.TimerHandle | None = None
        self.ended: asyncio.Future[str] = loop.create_future()

    @property
    def is_writable(self) -> bool:
        """Whether the peer takes what is sent; otherwise `on_writable` says when it does."""
        return not (self._is_paused or self._wire.is_blocked or self.ended.done())

    def send(self, message: bytes, *, is_last: bool = False) -> None:
        """Send a message now, perhaps the last; for order's sake it waits here if the peer takes nothing."""
        self._wire.send(message, is_last=is_last)
        self._flush()

    def hold(self) -> None:
        """Leave what comes unread until `release`."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def release(self) -> None:
        """Read on."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def close(self) -> None:
        """Cancel the call if it still runs, and drop the connection once all is written."""
        if self._timer is not None:
            self._timer.cancel()
        self._wire.cancel()
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._flush()
        self._timer = self._later(self._ping_after_s, self._look)

    def data_received(self, data: bytes) -> None:
        self._has_heard = True
        wire = self._wire
        was_blocked = wire.is_blocked
        self._take(wire.feed(data))
        self._flush()
        if wire.ended is not None:
            self._end(wire.ended)
        elif was_blocked and self.is_writable:
            self._on_writable()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(f"UNAVAILABLE: the connection was lost{f': {exc}' if exc else ''}")

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        if self.is_writable:
            self._on_writable()

    @abstractmethod
    def _take(self, messages: list[bytes]) -> None:
        """These have arrived; none does not mean that nothing has."""

    @abstractmethod
    def _on_writable(self) -> None:
        """The peer takes more, after it did not for a while."""

    def _look(self) -> None:
        """Every now and then: is the peer still there?"""
        if self._has_heard:
            self._has_heard = self._is_pinged = False
            self._timer = self._later(self._ping_after_s, self._look)
        elif self._is_pinged:
            self._end("UNAVAILABLE: the peer gives no sign of life")
        else:
            self._is_pinged = True
            self._wire.ping()
            self._flush()
            self._timer = self._later(self._ping_timeout_s, self._look)

    def _flush(self) -> None:
        output = self._wire.take_output()
        if output and self._transport is not None and not self._transport.is_closing():
            self._transport.write(output)

    def _end(self, reason: str) -> None:
        if not self.ended.done():
            self.ended.set_result(reason)
