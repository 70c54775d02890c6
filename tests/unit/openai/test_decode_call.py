"""What a reader of a worker's stream gets at a time."""

import asyncio
import math
from collections.abc import Callable

import pytest

from armature.openai.serving.backlog import SCORED_PART_TOKENS, Backlog
from armature.openai.serving.decode_call import AT_ONCE_TOKENS, LOOSE_TOKENS, ClientTooSlowError, DecodeCall, Limits
from armature.v1.common_pb2 import FINISH_REASON_LENGTH, Logprobs, PromptLogprobs, ServingInfo, TokenLogprob
from armature.v1.worker_pb2 import TokenDelta


def call(backlog: Backlog | None = None, end: Callable[[DecodeCall], None] = lambda _: None) -> DecodeCall:
    limits = Limits(
        first_token_s=1.0,
        stall_s=1.0,
        first_token_due_s=math.inf,
        due_s=math.inf,
        backlog=backlog or Backlog(1 << 20),
    )
    return DecodeCall(1, limits, 0.0, end)


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


async def read_all(read: DecodeCall) -> tuple[list[TokenDelta], Exception]:
    """What is there, and what comes after it."""
    deltas: list[TokenDelta] = []
    while True:
        try:
            deltas += await read.read()
        except ClientTooSlowError as end:
            return deltas, end


async def test_more_than_is_kept_ends_the_call_after_what_is_there() -> None:
    ended: list[DecodeCall] = []
    backlog = Backlog(1000)
    read = call(backlog, ended.append)
    sent = 0
    while not ended:
        read.push(TokenDelta(output_index=sent, token_ids=[sent]), 0.0)
        read.deliver()
        sent += 1
    assert 1000 <= backlog.size_bytes < 1000 + 2 * LOOSE_TOKENS * 12
    deltas, end = await read_all(read)
    assert tokens_of(deltas) == [*range(sent)]
    assert isinstance(end, ClientTooSlowError)
    assert backlog.size_bytes == 0


async def test_the_answers_to_one_request_share_what_is_kept() -> None:
    backlog = Backlog(1000)
    patient, late = call(backlog), call(backlog)
    for read, tokens in ((patient, 20 * LOOSE_TOKENS), (late, LOOSE_TOKENS)):
        for token_id in range(tokens):
            read.push(TokenDelta(token_ids=[token_id]), 0.0)
            read.deliver()
    assert backlog.is_full
    assert isinstance((await read_all(late))[1], ClientTooSlowError)
    patient.close()
    assert backlog.size_bytes == 0


def scored_delta(tokens: int, likely: int = 20) -> TokenDelta:
    entry = Logprobs(tokens=[TokenLogprob(token_id=n, logprob=-1.5) for n in range(likely)])
    return TokenDelta(
        stream_id=7, output_index=5, token_ids=range(tokens), logprobs=[entry] * tokens,
        info=ServingInfo(cached_tokens=3), prompt_logprobs=PromptLogprobs(top=1, token_ids=b"12345678"),
        finish_reason=FINISH_REASON_LENGTH,
    )  # fmt: skip


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize("tokens", [1, SCORED_PART_TOKENS, 17, 437])
async def test_many_tokens_with_log_probabilities_are_told_a_few_at_a_time(tokens: int, is_late: bool) -> None:
    """However many a worker has put into one message."""
    read, sent = call(), scored_delta(tokens)
    reader = None if is_late else await waiting(read)
    read.push(sent, 0.0)
    read.deliver()
    got: list[TokenDelta] = [*await reader] if reader else []
    while sum(len(delta.token_ids) for delta in got) < tokens:
        part = await read.read()
        assert len(tokens_of(part)) <= max(SCORED_PART_TOKENS, LOOSE_TOKENS)
        got += part
    assert tokens_of(got) == [*sent.token_ids]
    assert [entry for delta in got for entry in delta.logprobs] == [*sent.logprobs]
    assert [delta.output_index for delta in got] == [*range(5, 5 + tokens, SCORED_PART_TOKENS)]
    assert [delta.HasField("info") for delta in got] == [True] + [False] * (len(got) - 1)
    assert got[0].prompt_logprobs == sent.prompt_logprobs
    assert [bool(delta.finish_reason) for delta in got] == [False] * (len(got) - 1) + [True]


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
