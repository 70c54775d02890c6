"""The bytes of one gRPC call, however they are cut and whatever the peer does."""

import struct
from itertools import pairwise

import grpc
import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armature.runtime.grpc_wire import GrpcAnswer, GrpcCall
from armature.runtime.http2_stream import DEFAULT_WINDOW_BYTES, PREFACE, WINDOW_BYTES, Flag, Frame, Setting

MAX_MESSAGE_BYTES = 100_000
TRAILERS = [("grpc-status", "14"), ("grpc-message", "it dies%21")]


def call() -> GrpcCall:
    """One whose opening has been written."""
    made = GrpcCall("/t.Test/Stream", "host:1", max_message_bytes=MAX_MESSAGE_BYTES)
    made.take_output()
    return made


def frame(kind: Frame, payload: bytes, flags: int = 0, stream_id: int = 1) -> bytes:
    return struct.pack(">HBBBL", len(payload) >> 8, len(payload) & 255, kind, flags, stream_id) + payload


def message(data: bytes) -> bytes:
    return b"\0" + len(data).to_bytes(4, "big") + data


def headers(encoder: hpack.Encoder, entries: list[tuple[str, str]], flags: int = Flag.END_HEADERS) -> bytes:
    return frame(Frame.HEADERS, encoder.encode(entries), flags)


def frames_of(output: bytes) -> list[tuple[int, int, int, bytes]]:
    """(type, flags, stream, payload) of what was written."""
    found: list[tuple[int, int, int, bytes]] = []
    while output:
        high, low, kind, flags, stream_id = struct.unpack_from(">HBBBL", output)
        size = high << 8 | low
        found.append((kind, flags, stream_id, output[9 : 9 + size]))
        output = output[9 + size :]
    return found


def data_bytes(output: bytes) -> int:
    return sum(len(payload) for kind, _, _, payload in frames_of(output) if kind == Frame.DATA)


def test_the_opening_is_what_http2_and_grpc_ask_for() -> None:
    opening = GrpcCall("/t.Test/Stream", "host:1", max_message_bytes=1).take_output()
    assert opening.startswith(PREFACE)
    kinds = [kind for kind, _, _, _ in frames_of(opening.removeprefix(PREFACE))]
    assert kinds == [Frame.SETTINGS, Frame.WINDOW_UPDATE, Frame.HEADERS]
    said = dict(hpack.Decoder().decode(frames_of(opening.removeprefix(PREFACE))[-1][3]))
    assert (said[":method"], said[":path"], said[":authority"]) == ("POST", "/t.Test/Stream", "host:1")
    assert (said["te"], said["content-type"]) == ("trailers", "application/grpc")


@given(
    sizes=st.lists(st.integers(0, 20_000), max_size=12),
    cuts=st.lists(st.integers(0, 10**6), max_size=30),
    frame_bytes=st.integers(1, 16_000),
    pads=st.integers(0, 20),
)
@settings(max_examples=120, deadline=None)
def test_messages_do_not_depend_on_how_their_bytes_are_cut(
    sizes: list[int], cuts: list[int], frame_bytes: int, pads: int
) -> None:
    sent = [bytes([number % 251]) * size for number, size in enumerate(sizes)]
    body = b"".join(map(message, sent))
    encoder = hpack.Encoder()
    parts = [frame(Frame.SETTINGS, b"", stream_id=0), headers(encoder, [(":status", "200")])]
    for start in range(0, len(body), max(frame_bytes, len(body) // 300)):
        payload = body[start : start + max(frame_bytes, len(body) // 300)]
        padded = bytes([pads]) + payload + bytes(pads) if pads and len(payload) < 16_000 - pads else payload
        parts.append(frame(Frame.DATA, padded, Flag.PADDED if padded is not payload else 0))
    trailers = encoder.encode(TRAILERS)
    parts += [
        frame(Frame.HEADERS, trailers[:3], Flag.END_STREAM), frame(Frame.CONTINUATION, trailers[3:], Flag.END_HEADERS),
    ]  # fmt: skip
    stream = b"".join(parts)
    reader, got = call(), list[bytes]()
    for start, end in pairwise(sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})):
        got += reader.feed(stream[start:end])
    assert got == sent
    assert reader.ended == "UNAVAILABLE: it dies!"


@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("send"), st.integers(0, 60_000)),
            st.tuples(st.sampled_from(["stream", "connection"]), st.integers(1, 50_000)),
            st.tuples(st.just("initial"), st.integers(0, 100_000)),
        ),
        max_size=25,
    )
)
@settings(max_examples=200, deadline=None)
def test_no_more_is_sent_than_both_windows_allow_and_all_that_they_do(steps: list[tuple[str, int]]) -> None:
    writer = call()
    stream = connection = initial = DEFAULT_WINDOW_BYTES
    waiting = 0
    for kind, number in steps:
        if kind == "send":
            writer.send(bytes(number))
            waiting += number + 5
        elif kind == "initial":
            writer.feed(frame(Frame.SETTINGS, struct.pack(">HL", Setting.INITIAL_WINDOW_SIZE, number), stream_id=0))
            stream, initial = stream + number - initial, number
        else:
            writer.feed(frame(Frame.WINDOW_UPDATE, number.to_bytes(4, "big"), stream_id=kind == "stream"))
            stream, connection = stream + number * (kind == "stream"), connection + number * (kind == "connection")
        sent = data_bytes(writer.take_output())
        assert sent == max(0, min(waiting, stream, connection))
        waiting, stream, connection = waiting - sent, stream - sent, connection - sent
        assert writer.is_blocked == (waiting > 0)


def test_the_peer_may_go_on_sending_after_a_window_full() -> None:
    reader, told = call(), {0: 0, 1: 0}
    data = frame(Frame.DATA, message(bytes(16_000)))
    for _ in range(3 * WINDOW_BYTES // 16_000):
        reader.feed(data)
        for kind, _, stream_id, payload in frames_of(reader.take_output()):
            assert kind == Frame.WINDOW_UPDATE
            told[stream_id] += int.from_bytes(payload, "big")
    assert told[0] == told[1] >= 2 * WINDOW_BYTES


@given(reads=st.lists(st.lists(st.integers(0, 20_000), min_size=1, max_size=3), max_size=6), behind=st.integers(0, 30))
@settings(max_examples=60, deadline=None)
def test_messages_that_come_one_by_one_are_the_same_as_in_one_read(reads: list[list[int]], behind: int) -> None:
    """Most reads are one message in one frame; `behind` bytes of each wait for the next read."""
    at_once, one_by_one, got = call(), call(), list[bytes]()
    left, everything = b"", b""
    for sizes in reads:
        body = b"".join(message(bytes([size % 251]) * size) for size in sizes)
        parts = [frame(Frame.DATA, body[start : start + 16_384]) for start in range(0, len(body), 16_384)]
        everything += b"".join(parts)
        data = left + b"".join(parts)
        left = data[len(data) - behind :]
        got += one_by_one.feed(data[: len(data) - behind])
    got += one_by_one.feed(left)
    assert got == at_once.feed(everything) == [bytes([size % 251]) * size for sizes in reads for size in sizes]
    assert (one_by_one.ended, at_once.ended) == (None, None)


def test_a_frame_of_one_message_is_refused_for_what_any_other_is() -> None:
    for wrong, why in (
        (frame(Frame.DATA, message(b"x"), stream_id=3), "stream 3"),
        (frame(Frame.DATA, b"\1" + message(b"x")[1:]), "compressed"),
    ):
        reader = call()
        assert reader.feed(wrong) == []
        assert why in (reader.ended or "")
    reader = GrpcCall("/t.Test/Stream", "host:1", max_message_bytes=3)
    assert reader.feed(frame(Frame.DATA, message(b"abc"))) == [b"abc"]
    reader.feed(frame(Frame.DATA, message(b"abcd")))
    assert "too large" in (reader.ended or "")
    assert reader.feed(frame(Frame.DATA, message(b"abc"))) == []


def test_pings_are_answered_and_settings_acknowledged() -> None:
    reader = call()
    reader.feed(frame(Frame.PING, b"12345678", stream_id=0) + frame(Frame.SETTINGS, b"", stream_id=0))
    reader.feed(frame(Frame.PING, b"87654321", Flag.ACK, 0) + frame(Frame.SETTINGS, b"", Flag.ACK, 0))
    assert frames_of(reader.take_output()) == [
        (Frame.PING, Flag.ACK, 0, b"12345678"), (Frame.SETTINGS, Flag.ACK, 0, b""),
    ]  # fmt: skip


def test_a_draining_server_may_finish_and_a_failing_one_has_ended() -> None:
    reader = call()
    reader.feed(frame(Frame.GOAWAY, (1).to_bytes(4, "big") + bytes(4), stream_id=0))
    assert reader.ended is None
    assert reader.feed(frame(Frame.DATA, message(b"more"))) == [b"more"]
    reader.feed(frame(Frame.GOAWAY, bytes(4) + (11).to_bytes(4, "big") + b"too_many_pings", stream_id=0))
    assert reader.ended is not None
    assert "too_many_pings" in reader.ended


def test_whoever_breaks_the_protocol_is_told_and_left() -> None:
    encoder = hpack.Encoder()
    for broken, why in {
        frame(Frame.DATA, b"\1" + bytes(4)): "compressed",
        frame(Frame.DATA, b"\0" + (MAX_MESSAGE_BYTES + 1).to_bytes(4, "big")): "too large",
        frame(Frame.DATA, b"", stream_id=3): "stream 3",
        frame(Frame.DATA, b"\5abc", Flag.PADDED): "padding",
        frame(Frame.PUSH_PROMISE, b""): "pushes",
        frame(Frame.CONTINUATION, b""): "not begun",
        frame(Frame.SETTINGS, b"12345", stream_id=0): "cut off",
        headers(encoder, [(":status", "200")], 0) + frame(Frame.PING, bytes(8), stream_id=0): "interrupted",
        headers(hpack.Encoder(), [(":status", "503")]): "503",
        struct.pack(">HBBBL", 65_535, 255, Frame.DATA, 0, 1): "larger than allowed",
    }.items():
        reader = call()
        reader.feed(broken)
        assert reader.ended is not None
        assert why in reader.ended
        assert frames_of(reader.take_output())[-1][0] == Frame.RST_STREAM


@given(noise=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 255), st.integers(0, 3), st.binary(max_size=40))))
@settings(max_examples=200, deadline=None)
def test_no_bytes_make_it_raise(noise: list[tuple[int, int, int, bytes]]) -> None:
    reader = call()
    for kind, flags, stream_id, payload in noise:
        reader.feed(struct.pack(">HBBBL", 0, len(payload), kind, flags, stream_id) + payload)


@pytest.mark.parametrize("flags", [Flag.NONE, Flag.END_STREAM], ids=["still sending", "has sent all"])
def test_a_status_ends_both_sides_of_a_call(flags: int) -> None:
    answer = GrpcAnswer(max_message_bytes=MAX_MESSAGE_BYTES)
    asked = [(":method", "POST"), (":path", "/t.Test/Stream"), ("content-type", "application/grpc")]
    answer.feed(PREFACE + headers(hpack.Encoder(), asked, Flag.END_HEADERS | flags))
    answer.take_output()
    answer.finish(grpc.StatusCode.UNAVAILABLE)
    said = [(kind, payload) for kind, _, _, payload in frames_of(answer.take_output())]
    expected = [Frame.HEADERS, Frame.RST_STREAM, Frame.GOAWAY]
    assert [kind for kind, _ in said] == (expected if flags == Flag.NONE else [Frame.HEADERS, Frame.GOAWAY])
    assert all(payload == bytes(4) for kind, payload in said if kind == Frame.RST_STREAM), "it is no error"
    assert answer.is_answered
