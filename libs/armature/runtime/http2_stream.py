"""One stream of gRPC messages on an HTTP/2 connection of its own, without I/O: what is the same for both sides.

RFC 9113 and "gRPC over HTTP2" as far as one stream needs them; `grpc_wire` has the two sides.

Invariant: never more is sent than the peer's windows allow, and never more accepted than a message may have.
"""

import struct
from abc import ABC, abstractmethod

import hpack

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
STREAM_ID = 1
"""Of the only stream."""
WINDOW_BYTES = 1 << 24
"""What the peer may send before it hears that it was taken."""
DEFAULT_WINDOW_BYTES, DEFAULT_FRAME_BYTES = 65_535, 16_384
MAX_HEADERS_BYTES = 64 * 1024
_HEADER = struct.Struct(">HBBBL")
_SETTING = struct.Struct(">HL")
_PLAIN_DATA = struct.Struct(">HBBBLBL")
"""The header of a frame, and that of the message in it."""


class Frame:
    """Types of frames. No enumeration, whose members take as long to look up as the rest of a frame."""

    DATA = 0
    HEADERS = 1
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


class Flag:
    """Flags of frames; what bit 1 means depends on the type."""

    NONE = 0
    END_STREAM = 0x1
    ACK = 0x1
    END_HEADERS = 0x4
    PADDED = 0x8
    PRIORITY = 0x20


class Setting:
    """What a peer can set that matters here."""

    ENABLE_PUSH = 2
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5


class BrokenError(Exception):
    """The peer does not keep to the protocol."""


class Http2Stream(ABC):
    """The stream from its opening to its end.

    `feed` what arrives, `send` messages, and write what `take_output` gives after either.
    """

    def __init__(self, *, max_message_bytes: int) -> None:
        self.ended: str | None = None
        """Why, once it has ended: a status' name and message."""
        self._max_message_bytes = max_message_bytes
        self._output: list[bytes] = []
        self._input = b""
        self._message = bytearray()
        """The beginning of one that is not complete."""
        self._headers = bytearray()
        self._in_headers = self._ends_after_headers = False
        self._decoder, self._encoder = hpack.Decoder(MAX_HEADERS_BYTES), hpack.Encoder()
        self._untold_bytes = 0
        self._unsent = bytearray()
        self._ends_sending = False
        self._connection_window = self._stream_window = self._initial_window = DEFAULT_WINDOW_BYTES
        self._max_frame_bytes = DEFAULT_FRAME_BYTES

    @property
    def is_blocked(self) -> bool:
        """Whether the peer takes nothing at the moment; messages that are sent now wait here."""
        return bool(self._unsent)

    def take_output(self) -> bytes:
        """What is to be written now."""
        if not self._output:
            return b""
        output, self._output = self._output, []
        return output[0] if len(output) == 1 else b"".join(output)

    def send(self, message: bytes, *, is_last: bool = False) -> None:
        """Have a message go out as soon as the peer takes it; after the last one none may follow."""
        self._unsent += b"\0" + len(message).to_bytes(4, "big")
        self._unsent += message
        self._ends_sending = is_last
        self._pump()

    def ping(self) -> None:
        """Have the peer answer, if it is there."""
        self._emit(Frame.PING, bytes(8), stream_id=0)

    def grant(self) -> None:
        """The messages that came so far have been taken: the peer may send as much again."""
        if self._untold_bytes > WINDOW_BYTES // 2:
            grown = self._untold_bytes.to_bytes(4, "big")
            self._untold_bytes = 0
            self._emit(Frame.WINDOW_UPDATE, grown, stream_id=0)
            self._emit(Frame.WINDOW_UPDATE, grown)

    def cancel(self) -> None:
        """Tell the peer that nobody waits for more."""
        if self.ended is None:
            self._reset(8)
            self.ended = "CANCELLED: by this side"

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that these bytes complete. Look at `ended` afterwards."""
        if len(data) >= _PLAIN_DATA.size and not (self._input or self._message or self._in_headers):
            # As nearly always: one message, in one frame of data, and nothing besides.
            high, low, kind, flags, stream_id, packing, size = _PLAIN_DATA.unpack_from(data)
            is_whole = len(data) == size + _PLAIN_DATA.size and (high << 8 | low) == size + 5 <= DEFAULT_FRAME_BYTES
            is_plain = not (kind or flags or packing) and stream_id == STREAM_ID and self.ended is None
            if is_whole and is_plain and size <= self._max_message_bytes:
                self._untold_bytes += size + 5
                return [data[_PLAIN_DATA.size :]]
        messages: list[bytes] = []
        data = self._input + data if self._input else data
        at, size = 0, len(data)
        try:
            while size - at >= 9 and self.ended is None:
                high, low, kind, flags, stream_id = _HEADER.unpack_from(data, at)
                end = at + 9 + ((high << 8) | low)
                if end - at - 9 > DEFAULT_FRAME_BYTES:
                    raise BrokenError("a frame is larger than allowed")
                if end > size:
                    break
                self._take(kind, flags, stream_id & 0x7FFFFFFF, data[at + 9 : end], messages)
                at = end
        except BrokenError as error:
            self._reset(1)
            self.ended = f"INTERNAL: the peer breaks HTTP/2: {error}"
        self._input = data[at:]
        return messages

    # --- what arrives

    def _take(self, kind: int, flags: int, stream_id: int, payload: bytes, messages: list[bytes]) -> None:
        if self._in_headers and kind != Frame.CONTINUATION:
            raise BrokenError("a header block is interrupted")
        if kind == Frame.DATA:
            self._on_data(flags, stream_id, payload, messages)
        elif kind == Frame.WINDOW_UPDATE:
            self._on_window(stream_id, payload)
        elif kind == Frame.PING:
            if not flags & Flag.ACK:
                self._emit(Frame.PING, payload, Flag.ACK, stream_id=0)
        elif kind == Frame.SETTINGS:
            self._on_settings(flags, payload)
        elif kind in (Frame.HEADERS, Frame.CONTINUATION):
            self._on_headers(kind, flags, stream_id, payload)
        elif kind == Frame.RST_STREAM and stream_id == STREAM_ID:
            self.ended = f"UNAVAILABLE: the peer reset the stream with code {int.from_bytes(payload, 'big')}"
        elif kind == Frame.GOAWAY:
            self._on_goaway(payload)
        elif kind == Frame.PUSH_PROMISE:
            raise BrokenError("it pushes")

    def _on_data(self, flags: int, stream_id: int, payload: bytes, messages: list[bytes]) -> None:
        if stream_id != STREAM_ID:
            raise BrokenError(f"data on stream {stream_id}")
        self._untold_bytes += len(payload)
        data = _unpadded(flags, payload) if flags else payload
        if not self._message and len(data) >= 5 and int.from_bytes(data[1:5], "big") == len(data) - 5 and not data[0]:
            messages.append(data[5:])  # as most are: one message, one frame
        else:
            self._message += data
            self._cut_messages(messages)
        if messages and len(messages[-1]) > self._max_message_bytes:
            raise BrokenError("a message is too large")
        if flags & Flag.END_STREAM:
            self._on_end_of_data()

    def _cut_messages(self, messages: list[bytes]) -> None:
        buffer, at = self._message, 0
        while len(buffer) - at >= 5:
            length = int.from_bytes(buffer[at + 1 : at + 5], "big")
            if buffer[at]:
                raise BrokenError("a message is compressed, which was not offered")
            if length > self._max_message_bytes:
                raise BrokenError("a message is too large")
            if len(buffer) - at - 5 < length:
                break
            messages.append(bytes(buffer[at + 5 : at + 5 + length]))
            at += 5 + length
        del buffer[:at]

    def _on_headers(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if kind == Frame.HEADERS:
            payload = _unpadded(flags, payload)
            self._headers += payload[5:] if flags & Flag.PRIORITY else payload
            self._ends_after_headers = bool(flags & Flag.END_STREAM)
        else:
            if not self._in_headers:
                raise BrokenError("headers are continued that have not begun")
            self._headers += payload
        if len(self._headers) > MAX_HEADERS_BYTES:
            raise BrokenError("headers are too large")
        self._in_headers = not flags & Flag.END_HEADERS
        if not self._in_headers:
            self._on_header_block(stream_id, self._decoded(), is_last=self._ends_after_headers)

    def _decoded(self) -> list[tuple[str, str]]:
        try:
            headers = [(str(name), str(value)) for name, value, *_ in self._decoder.decode(bytes(self._headers))]
        except hpack.HPACKError as error:
            raise BrokenError(str(error)) from error
        self._headers.clear()
        return headers

    @abstractmethod
    def _on_header_block(self, stream_id: int, headers: list[tuple[str, str]], *, is_last: bool) -> None:
        """A block has arrived whole; `is_last`: nothing follows on its stream."""

    @abstractmethod
    def _on_end_of_data(self) -> None:
        """The peer sends no more messages."""

    @abstractmethod
    def _on_goaway(self, payload: bytes) -> None:
        """The peer takes no more streams."""

    def _on_settings(self, flags: int, payload: bytes) -> None:
        if flags & Flag.ACK:
            return
        if len(payload) % _SETTING.size:
            raise BrokenError("settings are cut off")
        for key, value in _SETTING.iter_unpack(payload):
            if key == Setting.INITIAL_WINDOW_SIZE:
                self._stream_window += value - self._initial_window
                self._initial_window = value
            elif key == Setting.MAX_FRAME_SIZE:
                self._max_frame_bytes = max(value, DEFAULT_FRAME_BYTES)
        self._emit(Frame.SETTINGS, b"", Flag.ACK, stream_id=0)
        self._pump()

    def _on_window(self, stream_id: int, payload: bytes) -> None:
        more = int.from_bytes(payload, "big") & 0x7FFFFFFF
        if stream_id == STREAM_ID:
            self._stream_window += more
        elif not stream_id:
            self._connection_window += more
        self._pump()

    # --- what leaves

    def _greet(self, setting: int, value: int) -> None:
        """This side's settings, one besides the window."""
        settings = _SETTING.pack(setting, value) + _SETTING.pack(Setting.INITIAL_WINDOW_SIZE, WINDOW_BYTES)
        self._emit(Frame.SETTINGS, settings, stream_id=0)
        more = (WINDOW_BYTES - DEFAULT_WINDOW_BYTES).to_bytes(4, "big")
        self._emit(Frame.WINDOW_UPDATE, more, stream_id=0)

    def _emit_headers(self, headers: list[tuple[str, str]], flags: int = Flag.NONE) -> None:
        self._emit(Frame.HEADERS, self._encoder.encode(headers), flags | Flag.END_HEADERS)

    def _pump(self) -> None:
        unsent, at = self._unsent, 0
        while at < len(unsent):
            room = min(self._connection_window, self._stream_window, self._max_frame_bytes, len(unsent) - at)
            if room <= 0:
                break
            is_end = self._ends_sending and at + room == len(unsent)
            self._emit(Frame.DATA, bytes(unsent[at : at + room]), Flag.END_STREAM if is_end else Flag.NONE)
            self._connection_window -= room
            self._stream_window -= room
            at += room
        del unsent[:at]

    def _reset(self, code: int) -> None:
        self._emit(Frame.RST_STREAM, code.to_bytes(4, "big"))

    def _emit(self, kind: int, payload: bytes, flags: int = Flag.NONE, stream_id: int = STREAM_ID) -> None:
        size = len(payload)
        self._output.append(_HEADER.pack(size >> 8, size & 0xFF, kind, flags, stream_id) + payload)


def _unpadded(flags: int, payload: bytes) -> bytes:
    if not flags & Flag.PADDED:
        return payload
    padding = payload[0] if payload else 0
    if padding >= len(payload):
        raise BrokenError("more padding than there is")
    return payload[1 : len(payload) - padding]
