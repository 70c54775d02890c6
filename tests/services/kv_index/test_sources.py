"""The index and its followers end up with what workers hold, whatever happens to the streams in between."""

import asyncio
from dataclasses import replace

import grpc
import pytest
from prometheus_client import REGISTRY

from armature.index.packing import pack_hashes
from armature.index.tiers import Tier
from armature.index.trust import TrustState
from armature.runtime.index_changes import change_of
from armature.runtime.index_followers import Followers, copy_of
from armature.v1.kv_index_pb2 import FollowRequest, IndexStatsRequest, IndexUpdate, MatchRequest, WorkerChange
from services.kv_index.book import Book
from tests.services.kv_index.harness import SETTINGS, Copy, registry
from tests.support.eventually import eventually
from tests.support.scripted_worker import scripted_workers


def repairs(reason: str) -> float:
    return REGISTRY.get_sample_value("armature_kv_index_repairs_total", {"reason": reason}) or 0.0


async def test_what_workers_hold_is_found() -> None:
    async with scripted_workers("w1", "p2") as (one, two), registry() as kv:
        one.store(range(10))
        kv.join(one, two)
        assert await kv.sources.settled(10.0)
        two.store(range(6))
        await eventually(lambda: kv.agrees(two))
        answer = await kv.stub.Match(MatchRequest(sequence_hashes=pack_hashes(range(8))), timeout=5)
        assert [(match.worker_id, match.blocks, match.stale) for match in answer.matches] == [
            ("w1", 8, False), ("p2", 6, False),
        ]  # fmt: skip
        assert answer.indexed_blocks == 10
        stats = await kv.stub.GetStats(IndexStatsRequest(), timeout=5)
        assert stats.indexed_blocks == 10
        assert {(one.id, one.blocks, one.trust) for one in stats.sources} == {
            ("w1", 10, WorkerChange.KIND_EXACT), ("p2", 6, WorkerChange.KIND_EXACT),
        }  # fmt: skip


async def test_torn_hashes_are_the_callers_fault() -> None:
    async with registry() as kv:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await kv.stub.Match(MatchRequest(sequence_hashes=b"torn"), timeout=5)
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_every_kind_of_event_arrives() -> None:
    async with scripted_workers("w1") as (worker,), registry() as kv:
        kv.join(worker)
        for act in (
            lambda: worker.store(range(10)), lambda: worker.remove([3, 9]), worker.clear, lambda: worker.store([7]),
        ):  # fmt: skip
            act()
            await eventually(lambda: kv.agrees(worker))
        assert worker.asked == [(0, 0)]


async def test_a_gap_is_repaired_from_the_ring() -> None:
    async with scripted_workers("w1") as (worker,), registry() as kv:
        kv.join(worker)
        worker.store(range(10))
        await eventually(lambda: kv.agrees(worker))
        before = repairs("gap")
        worker.store([20], lost=True)
        worker.remove([1, 2], lost=True)
        worker.store([30])
        await eventually(lambda: kv.agrees(worker))
        assert repairs("gap") == before + 1
        assert worker.asked == [(0, 0), (1, 2)]


async def test_a_gap_longer_than_the_ring_is_repaired_by_a_dump() -> None:
    async with scripted_workers("w1", ring=2) as (worker,), registry() as kv:
        kv.join(worker)
        worker.store(range(10))
        await eventually(lambda: kv.agrees(worker))
        for block in range(20, 26):
            worker.store([block], lost=True)
        worker.remove([1])
        await eventually(lambda: kv.agrees(worker))
        assert worker.asked == [(0, 0), (1, 2)]


async def test_a_broken_stream_is_stale_and_then_resumed() -> None:
    async with scripted_workers("w1") as (worker,), registry() as kv:
        worker.store(range(10))
        kv.join(worker)
        assert kv.index.is_stale("w1")
        await eventually(lambda: kv.agrees(worker))
        await worker.stop()
        await eventually(lambda: kv.index.is_stale("w1"))
        assert set(kv.index.holdings("w1")[Tier.G1]) == set(range(10))
        worker.store([50])
        await worker.start()
        await eventually(lambda: kv.agrees(worker))
        assert worker.asked[-1] == (1, 2)


async def test_an_idle_worker_is_exact_again_without_an_event() -> None:
    async with scripted_workers("w1") as (worker,), registry() as kv:
        worker.store(range(3))
        kv.join(worker)
        await eventually(lambda: kv.agrees(worker))
        worker.break_streams()
        await eventually(lambda: len(worker.asked) == 2 and kv.agrees(worker))


async def test_a_worker_started_again_at_its_address_is_learned_anew() -> None:
    async with scripted_workers("w1") as (worker,), registry() as kv:
        worker.store(range(10))
        kv.join(worker)
        await eventually(lambda: kv.agrees(worker))
        await worker.restart()
        worker.store([3, 4])
        await eventually(lambda: kv.agrees(worker))
        assert kv.index.size().blocks == 2


async def test_a_worker_that_leaves_is_forgotten_for_good() -> None:
    async with scripted_workers("w1", "w2") as (one, two), registry() as kv:
        for worker in (one, two):
            worker.store(range(10))
        kv.join(one, two)
        await eventually(lambda: kv.agrees(one) and kv.agrees(two))
        kv.leave(one)
        assert kv.index.worker_ids == ["w2"]
        await eventually(lambda: one.streams == 0)
        one.store([99])
        two.store([98])
        await eventually(lambda: kv.agrees(two))
        assert kv.index.worker_ids == ["w2"]
        assert kv.index.match(range(10)) == {"w2": 10}


async def test_a_follower_has_a_copy_and_then_every_change() -> None:
    async with scripted_workers("w1", "w2") as (one, two), registry() as kv, asyncio.TaskGroup() as tasks:
        one.store(range(23))
        two.store(range(4))
        kv.join(one, two)
        await eventually(lambda: kv.agrees(one) and kv.agrees(two))
        copy = Copy()
        following = tasks.create_task(kv.follow(copy))
        await eventually(lambda: copy.index is not None and kv.agrees(one, copy.index) and kv.agrees(two, copy.index))
        assert copy.largest <= SETTINGS.copy_message_blocks
        one.remove(range(3))
        two.store(range(40, 60))
        await eventually(lambda: kv.agrees(one, copy.index) and kv.agrees(two, copy.index))
        two.break_streams()
        await eventually(lambda: len(two.asked) == 2 and kv.agrees(two, copy.index))
        kv.leave(one)
        await eventually(lambda: copy.index is not None and copy.index.worker_ids == ["w2"])
        assert copy.resets == 1
        following.cancel()


async def test_a_follower_that_is_too_slow_gets_a_new_copy() -> None:
    settings = replace(SETTINGS, follower_queue_blocks=50)
    async with scripted_workers("w1", ring=1000) as (worker,), registry(settings) as kv:
        kv.join(worker)
        await eventually(lambda: kv.agrees(worker))
        call, copy = kv.stub.Follow(FollowRequest()), Copy()
        copy.take(await call.read())  # type: ignore[arg-type]
        # Nothing is read while the worker goes on. What gRPC buffers is far more than 50 blocks, so the follower's
        # queue is filled in one go.
        worker.store(range(1000))
        await eventually(lambda: kv.agrees(worker))
        while not (copy.index and kv.agrees(worker, copy.index)):
            copy.take(await asyncio.wait_for(call.read(), 10))  # type: ignore[arg-type]
        assert copy.resets == 2
        assert copy.largest <= max(settings.copy_message_blocks, 50)
        call.cancel()


async def test_a_copy_made_while_the_index_changes_is_whole_with_what_follows() -> None:
    book = Book(Followers(1000))
    index, followers = book.index, book.followers
    for worker_id in ("a", "b", "c"):
        index.store(worker_id, range(10))
        book.mark(worker_id, TrustState.EXACT)
    follower, copy = followers.attach(), Copy()
    assert await follower.take() is None
    follower.begin_copy()

    def happen(text: str) -> None:
        kind, worker_id, *blocks = text.split()
        change = IndexUpdate().changes.add(
            kind=kind, worker_id=worker_id, tier=1 if blocks else 0,  # type: ignore[arg-type]
            sequence_hashes=pack_hashes([int(block) for block in blocks]),
        )  # fmt: skip
        book.enter([change_of(change)], [change])

    script = iter(
        ["KIND_REMOVED a 1 2", "KIND_STORED b 50 51", "KIND_CLEARED c", "KIND_STORED c 7 8 9", "KIND_DROPPED b",
         "KIND_STORED d 1 2 3", "KIND_EXACT d", "KIND_STALE a", "KIND_REMOVED c 9"]
    )  # fmt: skip
    for update in copy_of(index, book.trust, 4):
        copy.take(update)
        happen(next(script))
    for text in script:
        happen(text)
    tail = await follower.take()
    assert tail is not None
    copy.take(tail)
    assert copy.index is not None
    copy.index.check()
    assert sorted(copy.index.worker_ids) == sorted(index.worker_ids) == ["a", "c", "d"]
    for worker_id in index.worker_ids:
        assert set(copy.index.holdings(worker_id)[Tier.G1]) == set(index.holdings(worker_id)[Tier.G1])
        assert copy.index.is_stale(worker_id) == index.is_stale(worker_id)


async def test_changes_that_are_alike_travel_as_one() -> None:
    async with scripted_workers("w1") as (worker,), registry() as kv:
        follower = kv.followers.attach()
        follower.begin_copy()
        kv.join(worker)
        await eventually(lambda: kv.agrees(worker))
        await follower.take()
        for block in range(5):
            worker.store([block])
        worker.remove([0])
        await eventually(lambda: kv.agrees(worker))
        update = await follower.take()
        assert update is not None
        assert len(update.changes) == 2
        assert update.changes[0].sequence_hashes == pack_hashes(range(5))


async def test_a_start_waits_for_all_workers_but_not_for_ever() -> None:
    async with scripted_workers("w1", "w2") as (one, two), registry() as kv:
        await two.stop()
        kv.join(one, two)
        assert not await kv.sources.settled(0.3)
        await eventually(lambda: kv.agrees(one))
        await two.start()
        assert await kv.sources.settled(10.0)


async def test_a_message_without_sense_changes_nothing_and_is_told() -> None:
    async with scripted_workers("w1") as (worker,), registry() as kv:
        worker.store(range(4))
        kv.join(worker)
        await eventually(lambda: kv.agrees(worker))
        worker.store([9])
        worker._events[-1].sequence_hashes = b"torn"
        await eventually(lambda: kv.index.is_stale("w1") and len(worker.asked) > 2)
        assert set(kv.index.holdings("w1")[Tier.G1]) == {0, 1, 2, 3}
