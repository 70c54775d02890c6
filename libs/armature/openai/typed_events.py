"""Server-sent events that have types, as the Responses and the Messages API stream them.

Most events of a stream differ in a piece of text only, so what is around it is encoded once for each part of an answer.
"""

from typing import Any, NamedTuple

import msgspec

_encode = msgspec.json.Encoder().encode


class Delta(NamedTuple):
    """An event around a piece of text."""

    head: bytes
    before: bytes
    after: bytes


class TypedEvents:
    """Collects the events of one answer; nothing if it is not streamed."""

    def __init__(self, *, is_streamed: bool, is_numbered: bool) -> None:
        self.is_streamed = is_streamed
        self._is_numbered = is_numbered
        self._told = 0
        self._events: list[bytes] = []

    def tell(self, kind: str, **fields: Any) -> None:
        if self.is_streamed:
            data = _encode({"type": kind, **fields})
            self._events += (_head(kind), self._number(), data[1:], b"\n\n")

    def delta(self, kind: str, **fields: Any) -> Delta:
        """The form of an event whose text goes where `fields` have their last empty string."""
        before, _, after = _encode({"type": kind, **fields})[1:].rpartition(b'""')
        return Delta(_head(kind), before, after + b"\n\n")

    def tell_delta(self, delta: Delta, text: str) -> None:
        if self.is_streamed:
            self._events += (delta.head, self._number(), delta.before, _encode(text), delta.after)

    def take(self) -> bytes:
        """The events since the last call, as bytes to be written."""
        events = b"".join(self._events)
        self._events.clear()
        return events

    def _number(self) -> bytes:
        if not self._is_numbered:
            return b""
        self._told += 1
        return b'"sequence_number":%d,' % (self._told - 1)


def _head(kind: str) -> bytes:
    return b"event: %b\ndata: {" % kind.encode()
