"""Lets streams of news be read together: what one event is followed by on many of them wakes the process once.

Where little else is done, waking costs several times what reading a message does. Nothing is kept back for longer than
`HOLD_S`; meanwhile it is with the kernel, whose buffers are bounded, and streams live on.
"""

import asyncio
from typing import Protocol

HOLD_S = 0.04
"""Less than lies between two reports of a worker, and time enough for a placed prompt's first effects."""
MOST_STREAMS = 64
"""Where there are more, a wake-up is shared anyway, and holding so many costs more than it saves."""


class Holdable(Protocol):
    """A stream that may be left unread for a while."""

    def hold(self) -> None: ...
    def release(self) -> None: ...


class NewsGate:
    """Open, unless `hold` was called a moment ago."""

    def __init__(self) -> None:
        self._streams: set[Holdable] = set()
        self._opening: asyncio.TimerHandle | None = None

    def add(self, stream: Holdable) -> None:
        self._streams.add(stream)

    def discard(self, stream: Holdable) -> None:
        self._streams.discard(stream)

    def hold(self) -> None:
        """Something was done of which news will come: have it come together."""
        if self._opening is None and 0 < len(self._streams) <= MOST_STREAMS:
            self._opening = asyncio.get_running_loop().call_later(HOLD_S, self.open)
            for stream in self._streams:
                stream.hold()

    def open(self) -> None:
        """Read all that has come."""
        if self._opening is not None:
            self._opening.cancel()
            self._opening = None
            for stream in self._streams:
                stream.release()
