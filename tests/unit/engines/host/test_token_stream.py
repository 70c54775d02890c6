"""A stream gives out all that is ready at once, and joins what waits."""

from armature.engines.host.token_stream import TokenStream
from armature.v1.common_pb2 import FINISH_REASON_LENGTH
from armature.v1.worker_pb2 import TokenDelta, TokenFrame


async def drain(stream: TokenStream) -> list[TokenFrame]:
    stream.complete()
    return [frame async for frame in stream.frames()]


async def test_one_frame_carries_the_deltas_of_all_requests() -> None:
    stream = TokenStream()
    for stream_id in (3, 1, 2):
        stream.put(stream_id, 0, [stream_id])
    frames = await drain(stream)
    assert [[delta.stream_id for delta in frame.deltas] for frame in frames] == [[3, 1, 2]]


async def test_deltas_that_wait_are_joined_until_their_request_ends() -> None:
    stream = TokenStream()
    stream.put(1, 0, [10])
    stream.put(1, 1, [11, 12]).info.cached_tokens = 5
    stream.put(1, 3, [13], FINISH_REASON_LENGTH)
    stream.put(1, 0, [99])  # the id is used again
    (frame,) = await drain(stream)
    joined = TokenDelta(stream_id=1, token_ids=[10, 11, 12, 13], finish_reason=FINISH_REASON_LENGTH)
    joined.info.cached_tokens = 5
    assert list(frame.deltas) == [joined, TokenDelta(stream_id=1, token_ids=[99])]


async def test_a_stream_is_full_until_its_client_takes_the_tokens() -> None:
    stream = TokenStream(max_pending_tokens=3)
    stream.put(1, 0, [1, 2, 3])
    assert not stream.is_full
    stream.put(1, 3, [4])
    assert stream.is_full
    frames = stream.frames()
    await anext(frames)
    assert not stream.is_full
    await frames.aclose()
