"""A kv-index that starts again goes on where its snapshots in a real Valkey end, or does without them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from armature.index.tiers import Tier
from armature.index.tracker import Position
from armature.index.trust import TrustState
from armature.runtime.index_keeper import Keeper
from armature.runtime.index_snapshots import SnapshotStore
from armature.runtime.processes import Child, start_valkey
from armature.runtime.redis_client import RedisClient
from tests.services.kv_index.harness import Registry, registry
from tests.support.eventually import eventually
from tests.support.scripted_worker import ScriptedWorker, scripted_workers

KEY = "armature:cell:kv-index:w1"


@pytest.fixture
async def valkey(tmp_path: Path) -> AsyncIterator[Child]:
    child = await start_valkey(tmp_path)
    yield child
    await child.kill()


@pytest.fixture
async def redis(valkey: Child) -> AsyncIterator[RedisClient]:
    client = RedisClient(f"redis://{valkey.address}", timeout_s=10.0)
    yield client
    await client.close()


@pytest.fixture
def store(redis: RedisClient) -> SnapshotStore:
    return SnapshotStore(redis, "cell", "kv-index-1", ttl_s=600.0)


def recoveries(outcome: str) -> float:
    return REGISTRY.get_sample_value("armature_kv_index_recoveries_total", {"outcome": outcome}) or 0.0


def dumps() -> float:
    return REGISTRY.get_sample_value("armature_kv_index_dumps_total") or 0.0


@asynccontextmanager
async def keeping(kv: Registry, store: SnapshotStore, *, is_ours: bool = True) -> AsyncIterator[None]:
    keeper = Keeper(store, interval_s=0.01, share=1.0)
    task = asyncio.create_task(keeper.run(lambda: kv.index.worker_ids, (kv.sources, kv.silent), lambda: is_ours))
    try:
        yield
    finally:
        task.cancel()


async def is_kept(store: SnapshotStore, worker: ScriptedWorker) -> bool:
    kept = await store.load(worker.worker_id, worker.epoch)
    return kept is not None and kept.position == Position(worker.epoch, worker.next_seq)


async def test_an_entry_is_read_as_it_was_written(store: SnapshotStore, redis: RedisClient) -> None:
    async with scripted_workers("w1") as (worker,), registry() as kv, keeping(kv, store):
        kv.join(worker)
        worker.store(range(100))
        worker.remove([3])
        await eventually(lambda: is_kept(store, worker))
        kept = await store.load("w1", worker.epoch)
        assert kept is not None
        ((tier, hashes),) = kept.blocks
        assert (tier, set(hashes)) == (Tier.G1, set(worker.held))
        assert 0 < await redis.call("PTTL", KEY) <= 600_000
        kv.leave(worker)

        async def is_gone() -> bool:
            return await redis.call("EXISTS", KEY) == 0

        await eventually(is_gone)


async def test_a_restart_goes_on_from_the_snapshot_and_asks_for_no_dump(store: SnapshotStore) -> None:
    async with scripted_workers("w1", "w2") as (one, two):
        async with registry() as kv, keeping(kv, store):
            kv.join(one, two)
            one.store(range(50))
            two.store(range(9))
            await eventually(lambda: kv.agrees(one) and kv.agrees(two))
            for worker in (one, two):
                await eventually(lambda worker=worker: is_kept(store, worker))
        one.remove(range(5))
        one.store(range(60, 65))
        before, dumped = recoveries("restored"), dumps()
        async with registry(store=store) as kv:
            kv.join(one, two)
            assert await kv.sources.settled(10.0)
            assert kv.agrees(one)
            assert kv.agrees(two)
            assert one.asked[-1] == (1, 2)
        assert (recoveries("restored"), dumps()) == (before + 2, dumped)


async def test_a_ring_that_has_moved_on_is_made_up_for_by_a_dump(store: SnapshotStore) -> None:
    async with scripted_workers("w1", ring=2) as (worker,):
        async with registry() as kv, keeping(kv, store):
            kv.join(worker)
            worker.store(range(50))
            await eventually(lambda: is_kept(store, worker))
        for block in range(100, 105):
            worker.store([block])
        worker.remove(range(40))
        dumped = dumps()
        async with registry(store=store) as kv:
            kv.join(worker)
            assert await kv.sources.settled(10.0)
            assert kv.agrees(worker)
        assert dumps() == dumped + 1


async def test_a_worker_that_has_started_again_is_not_taken_for_what_it_was(store: SnapshotStore) -> None:
    async with scripted_workers("w1") as (worker,):
        async with registry() as kv, keeping(kv, store):
            kv.join(worker)
            worker.store(range(50))
            await eventually(lambda: is_kept(store, worker))
        await worker.restart()
        worker.store([7])
        before = recoveries("foreign")
        async with registry(store=store) as kv:
            kv.join(worker)
            await eventually(lambda: kv.agrees(worker))
            assert kv.index.size().blocks == 1
        assert recoveries("foreign") == before + 1


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (("HSET", KEY, "head", b"gibberish that is long enough to be a head"), "format"),
        (("HSET", KEY, "0", b"12345678"), "torn"),
        (("HDEL", KEY, "0"), "torn"),
        (("SET", KEY, "a string"), "unavailable"),
        (("DEL", KEY), "absent"),
    ],
)
async def test_a_snapshot_of_no_use_is_refused_with_a_reason_and_done_without(
    store: SnapshotStore, redis: RedisClient, damage: tuple[str | bytes, ...], reason: str
) -> None:
    async with scripted_workers("w1") as (worker,):
        async with registry() as kv, keeping(kv, store):
            kv.join(worker)
            worker.store(range(50))
            await eventually(lambda: is_kept(store, worker))
        await redis.call(*damage)
        before = recoveries(reason)
        async with registry(store=store) as kv:
            kv.join(worker)
            assert await kv.sources.settled(10.0)
            assert kv.agrees(worker)
        assert recoveries(reason) == before + 1


async def test_without_redis_all_goes_on(store: SnapshotStore, valkey: Child) -> None:
    await valkey.kill()
    async with scripted_workers("w1") as (worker,), registry(store=store) as kv, keeping(kv, store):
        kv.join(worker)
        worker.store(range(50))
        await eventually(lambda: kv.agrees(worker))
        kv.leave(worker)
        assert kv.index.worker_ids == []


async def test_what_was_restored_is_believed_only_when_the_worker_has_been_heard(store: SnapshotStore) -> None:
    async with scripted_workers("w1") as (worker,):
        async with registry() as kv, keeping(kv, store):
            kv.join(worker)
            worker.store(range(50))
            await eventually(lambda: is_kept(store, worker))
        await worker.stop()
        async with registry(store=store) as kv:
            kv.join(worker)
            await eventually(lambda: kv.index.num_blocks("w1") == 50)
            assert kv.book.trust.state("w1") is TrustState.STALE
            await worker.start()
            await eventually(lambda: kv.agrees(worker))
            assert kv.book.trust.state("w1") is TrustState.EXACT


async def test_of_several_only_the_one_whose_turn_it_is_writes(store: SnapshotStore, redis: RedisClient) -> None:
    idle = SnapshotStore(redis, "idle", "kv-index-2", ttl_s=600.0)
    async with scripted_workers("w1") as (worker,), registry() as kv:
        kv.join(worker)
        async with keeping(kv, idle, is_ours=False), keeping(kv, store):
            for block in range(5):
                worker.store([block])
                await eventually(lambda: is_kept(store, worker))
        assert await redis.call("KEYS", "armature:idle:*") == []


async def test_a_silent_workers_assumed_blocks_survive_in_their_order(store: SnapshotStore) -> None:
    async with scripted_workers("w1") as (worker,):
        worker.has_events = False
        async with registry() as kv, keeping(kv, store):
            kv.join(worker)
            kv.silent.assume("w1", (1, 2, 3))
            kv.silent.assume("w1", (1, 9))

            async def is_written() -> bool:
                kept = await store.load("w1", worker.epoch)
                return kept is not None and kept.blocks == [(Tier.G1, [1, 9, 2, 3])]

            await eventually(is_written)
        async with registry(store=store) as kv:
            kv.join(worker)
            await eventually(lambda: kv.index.match([1, 2, 3]) == {"w1": 3})
            assert list(kv.silent.holdings("w1")[Tier.G1]) == [1, 9, 2, 3]
            assert kv.book.trust.state("w1") is TrustState.ASSUMED
            assert worker.asked == []
