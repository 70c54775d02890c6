"""One gRPC call that streams, on an HTTP/2 connection of its own, without I/O: the calling and the answering side.

grpcio speaks the same, but on threads of its own: two of them wake for every message, which costs several times what
the message costs here. Worth it where one call carries all that a process says to another.
"""

from urllib.parse import quote, unquote

import grpc

from armature.runtime.http2_stream import (
    PREFACE,
    STREAM_ID,
    WINDOW_BYTES,
    BrokenError,
    Flag,
    Frame,
    Http2Stream,
    Setting,
)

_OK = "0"
_STATUS_NAMES = {str(code.value[0]): code.name for code in grpc.StatusCode}
_NO_ERROR, _REFUSED_STREAM = 0, 7
_TIMEOUT_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_CONTENT_TYPE = "application/grpc"
_ANSWERED = "the call is answered"


class GrpcCall(Http2Stream):
    """The client's side. `path` is that of the method, `/armature.v1.Decode/Stream`."""

    def __init__(self, path: str, authority: str, *, scheme: str = "http", max_message_bytes: int) -> None:
        super().__init__(max_message_bytes=max_message_bytes)
        self._output.append(PREFACE)
        self._greet(Setting.ENABLE_PUSH, 0)
        self._emit_headers([
            (":method", "POST"), (":scheme", scheme), (":path", path), (":authority", authority),
            ("te", "trailers"), ("content-type", _CONTENT_TYPE), ("user-agent", "armature"),
        ])  # fmt: skip

    def feed(self, data: bytes) -> list[bytes]:
        """As for every stream; what comes is taken at once, so the window only bounds bursts."""
        messages = super().feed(data)
        if self._untold_bytes > WINDOW_BYTES // 2:
            self.grant()
        return messages

    def _on_header_block(self, stream_id: int, headers: list[tuple[str, str]], *, is_last: bool) -> None:
        found = dict(headers)
        if is_last:
            status = found.get("grpc-status", "")
            said = unquote(found.get("grpc-message", ""))
            name = _STATUS_NAMES.get(status, f"UNKNOWN (HTTP status {found.get(':status')})")
            self.ended = "the stream was ended by its server" if status == _OK else f"{name}: {said}"
        elif found.get(":status", "200") != "200":
            raise BrokenError(f"HTTP status {found[':status']}")

    def _on_end_of_data(self) -> None:
        self.ended = "the stream was ended by its server"

    def _on_goaway(self, payload: bytes) -> None:
        """A server that drains lets the stream end by itself, unless it never looked at it."""
        last, code, said = int.from_bytes(payload[:4], "big"), int.from_bytes(payload[4:8], "big"), payload[8:]
        if code or last < STREAM_ID:
            self.ended = f"UNAVAILABLE: the peer goes away with code {code}: {said.decode(errors='replace')[:200]}"


class GrpcAnswer(Http2Stream):
    """The server's side: of a connection it answers one call, the first, and has others made elsewhere.

    Messages count as taken when `grant` is called, so a call that is not listened to is not read without end.
    """

    def __init__(self, *, max_message_bytes: int) -> None:
        super().__init__(max_message_bytes=max_message_bytes)
        self.path = ""
        """Of the method, once it is called."""
        self.timeout_s: float | None = None
        """How long the caller waits."""
        self.metadata: list[tuple[str, str]] = []
        self.is_heard_out = False
        """Whether the caller has sent its last message."""
        self._preface = PREFACE
        """What of it has not come yet."""
        self._trailers: list[tuple[str, str]] | None = None
        self._greet(Setting.MAX_CONCURRENT_STREAMS, 1)

    @property
    def is_answered(self) -> bool:
        """Whether it has ended with its status sent."""
        return self.ended == _ANSWERED

    def feed(self, data: bytes) -> list[bytes]:
        """As for every stream."""
        if self._preface and self.ended is None:
            came, data = data[: len(self._preface)], data[len(self._preface) :]
            if not self._preface.startswith(came):
                self.ended = "INTERNAL: the peer does not speak HTTP/2"
                return []
            self._preface = self._preface[len(came) :]
        return super().feed(data) if data else []

    def finish(self, code: grpc.StatusCode, message: str = "", metadata: tuple[tuple[str, str], ...] = ()) -> None:
        """End the call with a status, behind all that was sent; the connection takes no other call."""
        if self.ended is None and self._trailers is None:
            said = [("grpc-message", quote(message))] if message else []
            self._trailers = [("grpc-status", str(code.value[0])), *said, *metadata]
            self._pump()

    def _pump(self) -> None:
        super()._pump()
        if self._trailers is None or self._unsent or self.ended is not None:
            return
        if self.path:
            self._emit_headers(self._trailers, Flag.END_STREAM)
            if not self.is_heard_out:
                # grpcio's client else ends its own side by a message, and forgets the status if it can't send that.
                self._reset(_NO_ERROR)
        self._emit(Frame.GOAWAY, STREAM_ID.to_bytes(4, "big") + bytes(4), stream_id=0)
        self.ended = _ANSWERED

    def _on_data(self, flags: int, stream_id: int, payload: bytes, messages: list[bytes]) -> None:
        if stream_id == STREAM_ID:
            super()._on_data(flags, stream_id, payload, messages)

    def _on_header_block(self, stream_id: int, headers: list[tuple[str, str]], *, is_last: bool) -> None:
        if stream_id != STREAM_ID or self.path:
            self._emit(Frame.RST_STREAM, _REFUSED_STREAM.to_bytes(4, "big"), stream_id=stream_id)
            return
        found = dict(headers)
        if found.get(":method") != "POST" or not found.get("content-type", "").startswith(_CONTENT_TYPE):
            raise BrokenError("that is no call")
        self.path, self.is_heard_out = found.get(":path", "/"), is_last
        self.metadata = [(name, value) for name, value in headers if not name.startswith((":", "grpc-"))]
        self.timeout_s = _timeout_s(found.get("grpc-timeout", ""))
        self._emit_headers([(":status", "200"), ("content-type", _CONTENT_TYPE)])

    def _on_end_of_data(self) -> None:
        self.is_heard_out = True

    def _on_goaway(self, payload: bytes) -> None:
        """It calls nobody else on this connection, which it could not anyhow."""


def _timeout_s(text: str) -> float | None:
    if not text:
        return None
    if text[-1] not in _TIMEOUT_UNITS or not text[:-1].isdecimal():
        raise BrokenError(f"grpc-timeout is {text!r}")
    return int(text[:-1]) * _TIMEOUT_UNITS[text[-1]]
