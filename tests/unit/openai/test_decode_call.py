"""What a reader of a worker's stream gets at a time."""

import asyncio
import math

import pytest

from armature.openai.serving.decode_call import AT_ONCE_TOKENS, ClientTooSlowError, DecodeCall, Limits
from armature.v1.worker_pb2 import TokenDelta


def call(max_buffered_tokens: int = 4096) -> DecodeCall:
    limits = Limits(
        first_token_s=1.0,
        stall_s=1.0,
        first_token_due_s=math.inf,
        due_s=math.inf,
        max_buffered_tokens=max_buffered_tokens,
    )
    return DecodeCall(1, limits, 0.0, lambda _: None)


def tokens_of(deltas: list[TokenDelta]) -> list[int]:
    return [token_id for delta in deltas for token_id in delta.token_ids]


@pytest.mark.parametrize("per_delta", [1, 7, 500])
async def test_a_late_reader_gets_everything_in_parts_between_which_others_have_their_turn(per_delta: int) -> None:
    read = call()
    sent = [[number * per_delta + n for n in range(per_delta)] for number in range(1400 // per_delta)]
    for token_ids in sent:
        read.push(TokenDelta(token_ids=token_ids), 0.0)
    read.deliver()
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    going = asyncio.create_task(other())
    parts: list[list[int]] = []
    while sum(map(len, parts)) < 1400 // per_delta * per_delta:
        parts.append(tokens_of(await read.read()))
    going.cancel()
    assert [token_id for part in parts for token_id in part] == [token_id for ids in sent for token_id in ids]
    assert all(len(part) < AT_ONCE_TOKENS + per_delta for part in parts)
    assert turns >= len(parts) - 1


async def test_more_than_is_kept_ends_the_call_after_what_is_there() -> None:
    read = call(max_buffered_tokens=100)
    for token_id in range(101):
        read.push(TokenDelta(token_ids=[token_id]), 0.0)
    assert tokens_of([*await read.read(), *await read.read()]) == [*range(101)]
    with pytest.raises(ClientTooSlowError):
        await read.read()


async def waiting(read: DecodeCall) -> "asyncio.Task[list[TokenDelta]]":
    """A reader that has come to the end of what is there."""
    reader = asyncio.create_task(read.read())
    await asyncio.sleep(0)
    return reader


async def test_what_is_taken_as_it_arrives_wakes_no_reader() -> None:
    read, taken = call(), list[int]()

    def take(deltas: list[TokenDelta]) -> bool:
        taken.extend(tokens_of(deltas))
        return len(taken) < 5

    read.on_deltas = take
    reader = await waiting(read)
    for batch in ([1], [2, 3]):
        for token_id in batch:
            read.push(TokenDelta(token_ids=[token_id]), 0.0)
        read.deliver()
        await asyncio.sleep(0)
    assert taken == [1, 2, 3]
    assert not reader.done()
    for token_id in (4, 5):
        read.push(TokenDelta(token_ids=[token_id]), 0.0)
    read.deliver()
    assert tokens_of(await reader) == [4, 5]


async def test_nothing_is_taken_past_a_reader_who_has_more_to_read() -> None:
    read, taken = call(), list[TokenDelta]()
    read.on_deltas = lambda deltas: bool(taken.extend(deltas)) or True
    read.push(TokenDelta(token_ids=[1]), 0.0)
    read.deliver()
    assert tokens_of(await read.read()) == [1]
    assert not taken


async def test_a_failure_to_take_is_the_readers_and_nobody_elses() -> None:
    read = call()
    read.on_deltas = lambda deltas: bool(1 // 0)
    reader = await waiting(read)
    read.push(TokenDelta(token_ids=[1]), 0.0)
    read.deliver()
    with pytest.raises(ZeroDivisionError):
        await reader
