"""Subscribers to KV events and load end up with what the worker has, however slow or late they are."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from armature.blocks.events import KvEvent, KvEventKind
from armature.blocks.hashing import BlockDigest
from armature.engines.host import worker_servicer
from armature.engines.host.worker_servicer import Board, WorkerServicer
from armature.engines.kv_event_log import KvEventLog
from armature.engines.kv_event_stream import HASHES_PER_MESSAGE
from armature.scheduling.request import EngineLoad
from armature.v1 import worker_pb2 as worker
from armature.v1.worker_pb2_grpc import WorkerStub
from tests.support.decode_client import decode_client
from tests.support.eventually import eventually
from tests.support.workers import Setup
from tests.support.workers import worker as serving_worker


def digest(number: int) -> BlockDigest:
    return BlockDigest(number.to_bytes(16, "little"))


def stored(seq: int, *numbers: int) -> KvEvent:
    return KvEvent(seq, KvEventKind.STORED, tuple(map(digest, numbers)))


def hashes(event: worker.KvEvent) -> list[int]:
    return np.frombuffer(event.sequence_hashes, "<u8").tolist()


class Subscriber:
    """Keeps a copy by the contract's rules."""

    def __init__(self, board: Board, epoch: int = 0, next_seq: int = 0) -> None:
        request = worker.KvEventsRequest(epoch=epoch, next_seq=next_seq)
        self._batches: Any = WorkerServicer(board, lambda: 0.0).KvEvents(request, object())
        self.held = set[int]()
        self.next_seq = next_seq
        self.resets = 0
        self._in_dump = False

    async def take(self) -> worker.KvEventBatch:
        async with asyncio.timeout(5):
            batch = await anext(self._batches)
        if batch.reset:
            self.held.clear()
            self.resets += 1
            self.next_seq = batch.first_seq
        assert batch.first_seq == self.next_seq, "a gap"
        dump, self._in_dump = batch.reset or self._in_dump, batch.more
        for event in batch.events:
            if event.kind == worker.KvEvent.KIND_STORED:
                self.held.update(hashes(event))
            elif event.kind == worker.KvEvent.KIND_REMOVED:
                self.held.difference_update(hashes(event))
            else:
                self.held.clear()
            self.next_seq += 0 if dump else 1
        return batch

    async def close(self) -> None:
        await self._batches.aclose()


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board(epoch=7)
    board.log = KvEventLog(capacity=8)
    yield board


async def test_a_newcomer_is_answered_at_once_even_if_there_is_nothing(board: Board) -> None:
    subscriber = Subscriber(board)
    batch = await subscriber.take()
    assert batch.reset and not batch.more and not batch.events
    board.update([stored(1, 4)], EngineLoad())
    await subscriber.take()
    assert subscriber.held == {4}


async def test_who_comes_back_in_time_gets_only_what_it_missed(board: Board) -> None:
    board.update([stored(seq, seq) for seq in range(1, 6)], EngineLoad())
    subscriber = Subscriber(board, epoch=7, next_seq=4)
    await subscriber.take()
    assert (subscriber.resets, subscriber.held, subscriber.next_seq) == (0, {4, 5}, 6)
    up_to_date = Subscriber(board, epoch=7, next_seq=6)
    batch = await up_to_date.take()
    assert not batch.reset and not batch.events


@pytest.mark.parametrize(("epoch", "next_seq"), [(7, 2), (7, 99), (6, 12), (0, 0)])
async def test_who_comes_back_too_late_or_from_elsewhere_gets_everything(
    board: Board, epoch: int, next_seq: int
) -> None:
    board.update([stored(seq, seq) for seq in range(1, 12)], EngineLoad())
    board.update([KvEvent(12, KvEventKind.REMOVED, (digest(3), digest(4)))], EngineLoad())
    subscriber = Subscriber(board, epoch, next_seq)
    await subscriber.take()
    assert subscriber.resets == 1
    assert subscriber.held == set(range(1, 12)) - {3, 4}


async def test_a_large_dump_comes_in_parts_and_the_tail_follows(board: Board) -> None:
    number = 2 * HASHES_PER_MESSAGE + 10
    board.update([stored(1, *range(number))], EngineLoad())
    subscriber = Subscriber(board)
    first = await subscriber.take()
    board.update([stored(2, number)], EngineLoad())  # while the dump is on its way
    assert first.more
    assert (await subscriber.take()).more
    assert not (await subscriber.take()).more
    await subscriber.take()
    assert subscriber.held == set(range(number + 1))
    assert subscriber.resets == 1


async def test_a_subscriber_that_falls_behind_is_told_everything_anew_and_the_others_are_not(board: Board) -> None:
    slow, quick = Subscriber(board), Subscriber(board)
    await slow.take()
    await quick.take()
    for seq in range(1, 31):
        board.update([stored(seq, seq)], EngineLoad())
        await quick.take()
    await slow.take()
    assert (slow.resets, slow.held) == (2, set(range(1, 31)))
    assert (quick.resets, quick.held) == (1, set(range(1, 31)))
    await slow.close()
    await quick.close()


@pytest.fixture
async def stub_and_client() -> AsyncIterator[tuple[Any, Any]]:
    setup = Setup(role="aggregated", transport="grpc", num_blocks=64, step_s=0.002)
    async with serving_worker(setup) as running, decode_client(running.address) as client:
        yield WorkerStub(running.channels.get(running.address)), client


async def test_events_of_a_real_engine_tell_what_its_cache_holds(stub_and_client: tuple[Any, Any]) -> None:
    stub, client = stub_and_client
    call = stub.KvEvents(worker.KvEventsRequest(), timeout=30)
    held, next_seq = set[int](), 1
    assert (await call.read()).reset
    for first in range(0, 100, 10):  # more than the pool holds
        await (await client.ask(list(range(first * 100, first * 100 + 200)))).wait()
    dump = stub.KvEvents(worker.KvEventsRequest(), timeout=30)
    expected = await dump.read()
    while next_seq < expected.first_seq:
        batch = await call.read()
        assert batch.first_seq == next_seq
        for event in batch.events:
            (held.update if event.kind == worker.KvEvent.KIND_STORED else held.difference_update)(hashes(event))
        next_seq += len(batch.events)
    assert held == set(hashes(expected.events[0]))
    assert 0 < len(held) <= 63
    call.cancel()
    dump.cancel()


async def test_load_is_told_at_once_then_when_it_changes(stub_and_client: tuple[Any, Any]) -> None:
    stub, client = stub_and_client
    call = stub.Load(worker.LoadRequest(min_interval_s=0.1), timeout=30)
    reports: list[worker.LoadReport] = []

    async def collect() -> None:
        while True:
            reports.append(await call.read())

    collecting = asyncio.create_task(collect())
    await eventually(lambda: reports)
    assert reports[0].epoch == 7 and not reports[0].running_seqs
    answer = await client.ask(list(range(100)), max_tokens=100_000)
    await eventually(lambda: reports[-1].running_seqs == 1)
    await eventually(lambda: reports[-1].free_blocks < 60)
    assert reports[-1].free_blocks < reports[-1].total_blocks == 63
    await client.cancel(answer)
    await eventually(lambda: not reports[-1].running_seqs and reports[-1].free_blocks == 63)
    call.cancel()
    await asyncio.wait({collecting})
    assert collecting.cancelled() or collecting.exception()


@pytest.mark.parametrize(("little_s", "change"), [(0.05, {"free_blocks": 999}), (3600.0, {"running_seqs": 2})])
async def test_what_moves_a_placement_is_told_soon_and_the_rest_some_time(
    board: Board, monkeypatch: pytest.MonkeyPatch, little_s: float, change: dict[str, int]
) -> None:
    monkeypatch.setattr(worker_servicer, "LITTLE_NEWS_INTERVAL_S", little_s)
    load = EngineLoad(running_seqs=1, free_blocks=1000, total_blocks=2000)
    board.update([], load)
    reports: Any = WorkerServicer(board, lambda: 0.0).Load(worker.LoadRequest(min_interval_s=0.01), object())
    await anext(reports)
    board.update([], load._replace(**change))
    async with asyncio.timeout(10):
        report = await anext(reports)
    assert all(getattr(report, name) == value for name, value in change.items())
    await reports.aclose()


@pytest.mark.parametrize("interval_s", [float("nan"), float("inf"), -1.0])
async def test_an_interval_that_can_not_be_is_refused(stub_and_client: tuple[Any, Any], interval_s: float) -> None:
    stub, _ = stub_and_client
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Load(worker.LoadRequest(min_interval_s=interval_s), timeout=10).read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
