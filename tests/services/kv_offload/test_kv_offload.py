"""Blocks go into a kv-offload and come back from wherever they are by then, or the worker is told that they won't."""

import asyncio
from pathlib import Path

import grpc
import pytest

from armature.index.tiers import Tier
from armature.runtime.processes import start_valkey
from armature.v1 import kv_offload_pb2 as pb
from armature.v1.common_pb2 import TIER_G2, TIER_G3, TIER_UNSPECIFIED, KvLayout
from armature.v1.worker_pb2 import KvEvent, KvEventsRequest
from tests.support.eventually import eventually
from tests.support.offloading import BLOCK_BYTES, LAYOUT, Tiers, digest, node, packed, worker_memory

EVERYTHING = {tier: {"admission": "all"} for tier in ("g2", "g3", "g4")}


@pytest.mark.parametrize("transport", ["nixl", "grpc"])
async def test_blocks_come_back_as_they_went(transport: str) -> None:
    async with node(Tiers(transport=transport)) as here, worker_memory(here, transport) as worker:
        assert await worker.put([1, 2, 3]) == ["taken"] * 3
        assert await worker.put([2, 3, 4]) == ["present", "present", "taken"]
        assert await worker.onboard([1, 2, 3, 4, 5], here.address) == ([Tier.G2] * 4, [1, 2, 3, 4], "complete")
        stats = await here.stub.GetStats(pb.StatsRequest(), timeout=10)
        assert [(one.tier, one.used_blocks, one.hit_blocks) for one in stats.tiers] == [(TIER_G2, 4, 4)]
        assert stats.tiers[0].write_bytes_per_s > 0
        await eventually(lambda: not len(here.store.tiers.readers), what="the lease has ended with the stream")
        here.store.tiers.check()


async def test_a_block_that_holds_something_else_is_not_taken() -> None:
    async with node(Tiers()) as here, worker_memory(here) as worker:
        worker.hold([1, 9, 3])
        assert await worker.offload([1, 2, 3]) == ["taken", "failed", "taken"]
        assert await worker.onboard([1, 2, 3], here.address) == ([Tier.G2], [1], "complete")
        assert await worker.put([2]) == ["taken"]
        here.store.tiers.check()


async def test_blocks_that_leave_memory_are_found_on_disk_and_after_that_remotely(tmp_path: Path) -> None:
    valkey = await start_valkey(tmp_path / "redis")
    tiers = Tiers(host=4, disk=6, remote=64, disk_dir=tmp_path, redis=f"redis://{valkey.address}", policy=EVERYTHING)
    async with node(tiers) as here, worker_memory(here) as worker:
        for number in range(20):
            assert await worker.put([number]) == ["taken"]
            await eventually(lambda: not here.store.tiers.spaces[Tier.G2].leaving_blocks)
        for tier in (Tier.G2, Tier.G3, Tier.G4):
            some = [copy for copy in here.store.tiers.spaces[tier] if here.store.tiers.find([copy.digest]) == [tier]]
            assert some, f"nothing is in {tier.name} alone"
            number = int.from_bytes(some[0].digest[:8], "little")
            assert await worker.onboard([number], here.address) == ([tier], [number], "complete")
        found = await here.stub.See(pb.SeeRequest(layout=LAYOUT), timeout=10)
        assert {speed.tier for speed in found.speeds} == {Tier.G3, Tier.G4}
        assert all(speed.bytes_per_s > 0 for speed in found.speeds)
    await valkey.kill()


async def test_a_prompt_is_announced_run_by_run_as_it_comes_up(tmp_path: Path) -> None:
    async with node(Tiers(host=8, disk=64, disk_dir=tmp_path, policy=EVERYTHING)) as here:
        async with worker_memory(here) as worker:
            for first in range(0, 16, 2):
                await worker.put([first, first + 1])
            tiers, came, reason = await worker.onboard(list(range(6)), here.address)
            assert (came, reason) == (list(range(6)), "complete")
            assert Tier.G3 in tiers
            assert (await worker.onboard(list(range(16)), here.address))[2] == "crowded", "it is larger than memory"
        here.store.tiers.check()


async def test_what_was_on_disk_is_there_after_a_restart(tmp_path: Path) -> None:
    tiers = Tiers(host=2, disk=64, disk_dir=tmp_path, policy=EVERYTHING)
    async with node(tiers) as here, worker_memory(here) as worker:
        for number in range(8):
            await worker.put([number])
            await eventually(lambda: not here.store.tiers.spaces[Tier.G2].leaving_blocks)
        await eventually(lambda: here.has(Tier.G3, range(6)))
    async with node(tiers) as here, worker_memory(here) as worker:
        assert await worker.onboard([0, 1], here.address) == ([Tier.G3] * 2, [0, 1], "complete")
        events = here.stub.KvEvents(KvEventsRequest(), timeout=20)
        first = await events.read()
        assert first.epoch == 7
        events.cancel()


async def test_a_flipped_byte_on_disk_is_noticed_and_the_block_forgotten(tmp_path: Path) -> None:
    tiers = Tiers(host=4, disk=64, disk_dir=tmp_path, policy=EVERYTHING)
    async with node(tiers) as here, worker_memory(here) as worker:
        for number in range(8):
            await worker.put([number])
            await eventually(lambda: not here.store.tiers.spaces[Tier.G2].leaving_blocks)
        await eventually(lambda: here.has(Tier.G3, [0, 1, 2]))
        (blocks,) = tmp_path.rglob("blocks")
        held = bytearray(blocks.read_bytes())
        at = held.index(digest(1)) + 1000
        held[at] ^= 1
        blocks.write_bytes(held)
        assert await worker.onboard([0, 1, 2], here.address) == ([Tier.G3] * 3, [0], "lost")
        looked = await here.stub.Lookup(pb.LookupRequest(layout=LAYOUT, digests=packed([0, 1, 2])), timeout=10)
        assert looked.tiers[1] == TIER_UNSPECIFIED
        assert await worker.put([1]) == ["taken"]
        assert (await worker.onboard([0, 1, 2], here.address))[1] == [0, 1, 2]


async def test_without_redis_everything_else_goes_on(tmp_path: Path) -> None:
    valkey = await start_valkey(tmp_path / "redis")
    tiers = Tiers(host=2, remote=64, redis=f"redis://{valkey.address}", policy=EVERYTHING)
    async with node(tiers) as here, worker_memory(here) as worker:
        for number in range(4):
            await worker.put([number])
            await eventually(lambda: not here.store.tiers.spaces[Tier.G2].leaving_blocks)
        await eventually(lambda: here.has(Tier.G4, [0, 1]))
        await valkey.kill()
        assert await worker.onboard([0], here.address) == ([Tier.G4], [], "lost")
        assert await worker.put([7]) == ["taken"]
        assert await worker.put([8]) == ["taken"]
        assert (await worker.onboard([7], here.address))[1] == [7]
        here.store.tiers.check()


async def test_a_lease_ends_though_its_worker_goes_on_listening() -> None:
    async with node(Tiers(lease_s=0.2)) as here, worker_memory(here) as worker:
        await worker.put([1, 2])
        call = here.stub.Onboard(pb.OnboardRequest(layout=LAYOUT, digests=packed([1, 2])), timeout=20)
        updates = [update.WhichOneof("step") async for update in call]
        assert updates == ["start", "done"]
        await eventually(lambda: not len(here.store.tiers.readers))


async def test_leased_blocks_stay_while_others_come() -> None:
    async with node(Tiers(host=4)) as here, worker_memory(here) as worker:
        await worker.put([1, 2])
        call = here.stub.Onboard(pb.OnboardRequest(layout=LAYOUT, digests=packed([1, 2])), timeout=20)
        while (await call.read()).WhichOneof("step") != "done":
            pass
        for number in range(10, 20):
            await worker.put([number])
        assert here.store.tiers.find([digest(1), digest(2)]) == [Tier.G2] * 2
        call.cancel()


async def test_pins_hold_and_evictions_do_not_ask(tmp_path: Path) -> None:
    async with node(Tiers(host=4)) as here, worker_memory(here) as worker:
        await worker.put([1])
        pin = pb.PinRequest(layout=LAYOUT, digests=packed([1, 9]), ttl_s=60)
        assert (await here.stub.Pin(pin, timeout=10)).pinned_blocks == 1
        for number in range(10, 20):
            await worker.put([number])
        assert here.store.tiers.find([digest(1)]) == [Tier.G2]
        evict = pb.EvictRequest(layout=LAYOUT, digests=packed([1]))
        assert (await here.stub.Evict(evict, timeout=10)).evicted_blocks == 1
        assert here.store.tiers.find([digest(1)]) == []
        everything = await here.stub.Evict(pb.EvictRequest(layout=LAYOUT, all=True), timeout=10)
        assert everything.evicted_blocks == 3
        here.store.tiers.check()


async def test_events_tell_the_tier_of_every_block(tmp_path: Path) -> None:
    async with (
        node(Tiers(host=2, disk=64, disk_dir=tmp_path, policy=EVERYTHING)) as here,
        worker_memory(here) as worker,
    ):
        events = here.stub.KvEvents(KvEventsRequest(epoch=7, next_seq=1), timeout=20)
        known: set[tuple[int, bytes]] = set()
        for number in range(5):
            await worker.put([number])
            await eventually(lambda: not here.store.tiers.spaces[Tier.G2].leaving_blocks)
        wanted = {(tier.value, copy.digest[:8]) for tier, space in here.store.tiers.spaces.items() for copy in space}
        async with asyncio.timeout(10):
            while known != wanted:
                for event in (await events.read()).events:
                    pieces = [event.sequence_hashes[at : at + 8] for at in range(0, len(event.sequence_hashes), 8)]
                    named = {(event.tier, piece) for piece in pieces}
                    known = known | named if event.kind == KvEvent.KIND_STORED else known - named
        assert {tier for tier, _ in known} == {TIER_G2, TIER_G3}
        events.cancel()


async def test_admission_goes_by_what_was_seen() -> None:
    policy = {"g2": {"admission": {"frequency": {"min_uses": 2}}}}
    async with node(Tiers(policy=policy)) as here, worker_memory(here) as worker:
        prompt = pb.SeenPrompt(digests=packed([1, 2]), worth_s=[0.1, 0.1], tenant="acme")
        await here.stub.See(pb.SeeRequest(layout=LAYOUT, prompts=[prompt]), timeout=10)
        assert await worker.put([1, 2]) == ["refused"] * 2
        await here.stub.See(pb.SeeRequest(layout=LAYOUT, prompts=[prompt]), timeout=10)
        assert await worker.put([1, 2]) == ["taken"] * 2


@pytest.mark.parametrize(
    ("method", "request_", "told"),
    [
        ("See", pb.SeeRequest(layout=KvLayout(kv_fingerprint=b"x", block_bytes=BLOCK_BYTES)), "layout"),
        ("Lookup", pb.LookupRequest(layout=LAYOUT, digests=b"short"), "digests"),
        ("Pin", pb.PinRequest(layout=LAYOUT, digests=b"", ttl_s=0), "ttl_s"),
        ("Offload", pb.OffloadRequest(layout=LAYOUT, digests=bytes(16)), "block_ids"),
        ("Offload", pb.OffloadRequest(layout=LAYOUT, digests=bytes(16), block_ids=[1]), "source"),
        ("Evict", pb.EvictRequest(layout=LAYOUT, tier=TIER_G3), "tier"),
        (
            "See",
            pb.SeeRequest(layout=LAYOUT, prompts=[pb.SeenPrompt(digests=bytes(16), worth_s=[1, 2])]),
            "worth_s",
        ),
        (
            "See",
            pb.SeeRequest(layout=LAYOUT, prompts=[pb.SeenPrompt(digests=bytes(16), worth_s=[1], priority=99)]),
            "priority",
        ),
    ],
    ids=["layout", "digests", "ttl", "ids", "source", "tier", "worth", "priority"],
)
async def test_what_is_wrong_with_a_request_is_named(method: str, request_: object, told: str) -> None:
    async with node(Tiers()) as here:
        with pytest.raises(grpc.aio.AioRpcError, match=told) as refused:
            await getattr(here.stub, method)(request_, timeout=10)
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
