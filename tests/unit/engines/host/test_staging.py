"""What a reader may do with a prefill worker, and what becomes of staged blocks when it does not."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from armature.blocks.hashing import BlockHasher
from armature.engines.host.conversion import pack_tokens
from armature.v1.worker_pb2 import (
    PrefillRelease,
    PrefillRequest,
    PrefillStart,
    PrefillUpdate,
    ReadBlocksRequest,
    StagingInfo,
)
from armature.v1.worker_pb2_grpc import BlocksStub, PrefillStub
from tests.support.eventually import eventually
from tests.support.workers import SECRET, Setup, Worker, worker

PROMPT = list(range(1000, 1101))  # six whole blocks and five tokens
DIGESTS = BlockHasher(SECRET, 16).extend(BlockHasher(SECRET, 16).root("m"), PROMPT)
CALM = Setup(role="prefill", transport="grpc", lease_s=30.0)
HASTY = Setup(role="prefill", transport="grpc", lease_s=0.2, read_timeout_s=0.1)
SLOW = Setup(role="prefill", transport="grpc", step_s=0.05, max_num_batched_tokens=16, lease_s=30.0)


@asynccontextmanager
async def prefill_worker(setup: Setup) -> AsyncIterator[tuple[Worker, PrefillStub]]:
    async with worker(setup) as running:
        yield running, PrefillStub(running.channels.get(running.address))


async def begin(stub: PrefillStub, running: Worker, tokens: list[int] = PROMPT, **fields: Any) -> Any:
    start: dict[str, Any] = {
        "request_id": "r", "model": "m", "token_ids": pack_tokens(tokens), "transport": "grpc",
        "kv_fingerprint": running.engine.info.kv_fingerprint, **fields,
    }  # fmt: skip
    call = stub.Prefill(timeout=30)
    await call.write(PrefillRequest(start=PrefillStart(**start)))
    return call


async def read_all(call: Any) -> tuple[StagingInfo, list[PrefillUpdate]]:
    updates: list[PrefillUpdate] = []
    while not updates or updates[-1].WhichOneof("step") != "done":
        updates.append(await call.read())
    assert updates[0].WhichOneof("step") == "staging"
    return updates[0].staging, updates[1:-1]


async def release(call: Any, up_to_block: int) -> None:
    await call.write(PrefillRequest(release=PrefillRelease(up_to_block=up_to_block)))


async def read_blocks(running: Worker, staging_id: str, block_ids: list[int]) -> bytes:
    request = ReadBlocksRequest(staging_id=staging_id, block_ids=block_ids)
    stub = BlocksStub(running.channels.get(running.address))
    return b"".join([chunk.data async for chunk in stub.ReadBlocks(request, timeout=10)])


def is_free(running: Worker) -> bool:
    load = running.load
    return load.free_blocks == load.total_blocks and not load.staged_blocks and not len(running.host.exchange.stagings)


async def test_blocks_are_announced_chunk_by_chunk_with_the_digests_of_the_prompt() -> None:
    async with prefill_worker(SLOW) as (running, stub):
        call = await begin(stub, running)
        info, updates = await read_all(call)
        assert info.block_bytes == 4096
        assert len(updates) == 6, "one for each step"
        assert [update.blocks.first_block for update in updates] == list(range(6))
        assert b"".join(update.blocks.digests for update in updates) == b"".join(DIGESTS)
        block_ids = [block_id for update in updates for block_id in update.blocks.block_ids]
        data = await read_blocks(running, info.staging_id, block_ids)
        ends = [data[end - 16 : end] for end in range(4096, len(data) + 1, 4096)]
        assert ends == DIGESTS
        await release(call, 6)
        assert await call.read() is grpc.aio.EOF
        await eventually(lambda: is_free(running))


async def test_what_the_reader_has_is_not_announced_and_what_is_cached_is_said() -> None:
    async with prefill_worker(CALM) as (running, stub):
        call = await begin(stub, running)
        await read_all(call)
        await release(call, 2**32 - 1)
        again = await begin(stub, running, first_block=4)
        _, updates = await read_all(again)
        assert [update.blocks.first_block for update in updates] == [4]
        assert updates[0].blocks.digests == b"".join(DIGESTS[4:6])
        assert updates[0].blocks.cached_tokens == 96
        again.cancel()


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"model": "other"}, grpc.StatusCode.NOT_FOUND),
        ({"kv_fingerprint": b"foreign"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"token_ids": b"abc"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"token_ids": b""}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"token_ids": pack_tokens([99999] * 100)}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"token_ids": pack_tokens([1] * 10000)}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"token_ids": pack_tokens([1] * 16)}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"first_block": 6}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"transport": "pigeon"}, grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_a_wrong_request_is_refused_with_its_reason(wrong: dict[str, Any], code: grpc.StatusCode) -> None:
    async with prefill_worker(CALM) as (running, stub):
        call = await begin(stub, running, **wrong)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
        assert refused.value.code() == code
        assert refused.value.details()
        assert is_free(running)


async def test_a_call_that_begins_with_a_release_is_refused() -> None:
    async with prefill_worker(CALM) as (_, stub):
        call = stub.Prefill(timeout=10)
        await release(call, 1)
        with pytest.raises(grpc.aio.AioRpcError, match="start"):
            await call.read()


async def test_more_prompts_than_may_be_staged_are_refused() -> None:
    setup = Setup(role="prefill", transport="grpc", max_stagings=1)
    async with prefill_worker(setup) as (running, stub):
        first = await begin(stub, running)
        await read_all(first)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await (await begin(stub, running)).read()
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        await release(first, 6)
        assert await first.read() is grpc.aio.EOF
        await read_all(await begin(stub, running))


async def test_only_blocks_of_the_staging_can_be_read() -> None:
    async with prefill_worker(CALM) as (running, stub):
        call = await begin(stub, running)
        info, updates = await read_all(call)
        block_ids = list(updates[0].blocks.block_ids)
        await release(call, 2)
        await eventually(lambda: running.load.staged_blocks == 4)
        free = next(block for block in range(1, 512) if block not in block_ids)
        for staging_id, wanted in (
            ("p-guessed", block_ids[2:]), (info.staging_id, [*block_ids[2:], free]), (info.staging_id, block_ids),
        ):  # fmt: skip
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await read_blocks(running, staging_id, wanted)
            assert refused.value.code() == grpc.StatusCode.NOT_FOUND
        assert len(await read_blocks(running, info.staging_id, block_ids[2:])) == 4 * 4096
        call.cancel()


async def test_blocks_larger_than_a_message_arrive_whole() -> None:
    setup = Setup(role="prefill", transport="grpc", block_bytes=5_000_000, num_blocks=8)
    async with prefill_worker(setup) as (running, stub):
        call = await begin(stub, running, PROMPT[:49])
        info, updates = await read_all(call)
        data = await read_blocks(running, info.staging_id, list(updates[0].blocks.block_ids))
        assert len(data) == 3 * 5_000_000
        assert data[5_000_000 - 16 : 5_000_000] == DIGESTS[0]
        call.cancel()


async def test_computing_stops_with_the_call_and_blocks_stay_for_their_lease() -> None:
    async with prefill_worker(SLOW) as (running, stub):
        call = await begin(stub, running, list(range(2000)))
        info, updates = (await call.read()).staging, [await call.read(), await call.read()]
        call.cancel()
        await eventually(lambda: running.load.waiting_prefill_tokens == 0 and running.load.running_seqs == 0)
        steps = running.runner.steps
        assert steps <= 5, "of 125"
        assert running.load.staged_blocks >= 2
        block_ids = [block_id for update in updates for block_id in update.blocks.block_ids]
        assert len(await read_blocks(running, info.staging_id, block_ids)) == 2 * 4096
        assert len(running.host.exchange.stagings) == 1


async def test_a_lease_that_runs_out_frees_the_blocks() -> None:
    async with prefill_worker(HASTY) as (running, stub):
        call = await begin(stub, running)
        info, updates = await read_all(call)
        call.cancel()
        ended_s = time.monotonic()
        await eventually(lambda: is_free(running))
        assert 0.15 < time.monotonic() - ended_s < 2.0
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await read_blocks(running, info.staging_id, list(updates[0].blocks.block_ids))
        assert refused.value.code() == grpc.StatusCode.NOT_FOUND


async def test_a_reader_that_falls_silent_loses_its_blocks_too() -> None:
    async with prefill_worker(HASTY) as (running, stub):
        call = await begin(stub, running)
        await read_all(call)  # and then keeps the call open for ever
        await eventually(lambda: is_free(running), 5)
        assert await call.read() is grpc.aio.EOF


async def test_a_reader_that_no_longer_wants_the_prompt_stops_it_with_a_release() -> None:
    async with prefill_worker(SLOW) as (running, stub):
        call = await begin(stub, running, list(range(2000)))
        await call.read()
        await call.read()
        await release(call, 2**32 - 1)
        await eventually(lambda: is_free(running))
        assert running.runner.steps <= 5


async def test_draining_waits_for_readers_and_refuses_new_ones() -> None:
    async with prefill_worker(CALM) as (running, stub):
        call = await begin(stub, running)
        await read_all(call)
        draining = asyncio.create_task(running.host.drain())
        await eventually(lambda: running.host.exchange.stagings.is_draining)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await (await begin(stub, running)).read()
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
        assert not draining.done()
        await release(call, 6)
        await asyncio.wait_for(draining, 5)
