"""What a kv-offload keeps counts for the workers of its node, as long as it is there."""

import asyncio
import random
import time

import pytest

from armature.index.change import Change, ChangeKind
from armature.index.prefix_index import Reach
from armature.index.tiers import Tier
from armature.index.trust import TrustState
from armature.routing.router import RoutingCore
from armature.runtime.channels import ChannelPool
from armature.runtime.disbelief import Disbelief
from armature.runtime.index_replica import Replica
from armature.runtime.policies import load_policy
from armature.runtime.roster import MemberChange
from armature.v1.common_pb2 import TIER_G2, TIER_G3, KvLayout, Member
from armature.v1.kv_index_pb2 import ResyncRequest
from tests.services.kv_index.harness import Copy, registry
from tests.support.eventually import eventually
from tests.support.scripted_worker import ScriptedWorker, scripted_workers

BELOW = Reach({"w1": 4}, {tier: {"w1": n, "w2": n, "o1": n} for tier, n in ((Tier.G2, 8), (Tier.G3, 12))})

ALONE = {Tier.G2: {"o1": 8}, Tier.G3: {"o1": 12}}


def keep(worker: ScriptedWorker, offload: ScriptedWorker) -> None:
    worker.store(range(4))
    offload.store(range(8), tier=TIER_G2)
    offload.store(range(8, 12), tier=TIER_G3)


@pytest.mark.parametrize("first", ["workers", "kv-offload"])
async def test_workers_of_a_node_reach_what_its_kv_offload_keeps_and_followers_know_it(first: str) -> None:
    async with scripted_workers("w1", "w2", "w3", "o1") as started, registry() as kv, asyncio.TaskGroup() as tasks:
        one, two, three, offload = started
        one.node = two.node = offload.node = "here"
        three.node = "elsewhere"
        keep(one, offload)
        early, late = Copy(), Copy()
        following = [tasks.create_task(kv.follow(early))]
        kv.join(*(started if first == "workers" else reversed(started)))
        await eventually(lambda: all(kv.agrees(member) for member in started))
        assert kv.index.reach(range(20)) == BELOW
        following.append(tasks.create_task(kv.follow(late)))
        for copy in (early, late):
            await eventually(lambda copy=copy: copy.index is not None and copy.index.reach(range(20)) == BELOW)
        offload.remove([8])
        kv.leave(two)
        expected = Reach({"w1": 4}, {Tier.G2: {"w1": 8, "o1": 8}})
        for copy in (early, late):
            await eventually(lambda copy=copy: copy.index.reach(range(20)) == expected)
        kv.leave(offload)
        assert kv.index.reach(range(20)) == Reach({"w1": 4}, {})
        for copy in (early, late):
            await eventually(lambda copy=copy: copy.index.reach(range(20)) == Reach({"w1": 4}, {}))
            assert "o1" not in copy.index
        for task in following:
            task.cancel()


async def test_a_kv_offload_without_a_layout_or_with_another_counts_for_nobody_until_it_has_theirs() -> None:
    async with scripted_workers("w1", "o1") as (worker, offload), registry() as kv:
        keep(worker, offload)
        member = offload.member
        member.offload.ClearField("layout")
        kv.join(worker)
        kv.tell(MemberChange("joined", member))
        await eventually(lambda: kv.agrees(offload) and kv.agrees(worker))
        assert kv.index.reach(range(20)).lower == ALONE
        member.offload.layout.CopyFrom(KvLayout(kv_fingerprint=b"other"))
        kv.tell(MemberChange("updated", member))
        assert kv.index.reach(range(20)).lower == ALONE
        kv.tell(MemberChange("updated", offload.member))
        assert kv.index.reach(range(20)).lower == {Tier.G2: {"w1": 8, "o1": 8}, Tier.G3: {"w1": 12, "o1": 12}}


async def test_a_kv_offload_is_repaired_like_a_worker_and_learned_anew_when_it_starts_again() -> None:
    async with scripted_workers("w1", "o1", ring=2) as (worker, offload), registry() as kv:
        keep(worker, offload)
        kv.join(worker, offload)
        await eventually(lambda: kv.agrees(offload))
        for block in range(20, 26):
            offload.store([block], lost=True, tier=TIER_G3)
        offload.remove([0])
        await eventually(lambda: kv.agrees(offload))
        assert kv.index.reach(range(20)).lower == {Tier.G2: {"w1": 8}, Tier.G3: {"w1": 12}}
        await offload.restart()
        offload.store(range(6), tier=TIER_G2)
        await eventually(lambda: kv.agrees(offload))
        assert kv.index.reach(range(20)).lower == {Tier.G2: {"w1": 6, "o1": 6}}


async def test_a_kv_offload_that_is_not_believed_is_heard_anew_but_not_again_and_again() -> None:
    async with scripted_workers("w1", "o1") as (worker, offload), registry() as kv, asyncio.TaskGroup() as tasks:
        keep(worker, offload)
        kv.join(worker, offload)
        await eventually(lambda: kv.agrees(offload))
        copy = Copy()
        following = tasks.create_task(kv.follow(copy))
        await eventually(lambda: copy.index is not None and "o1" in copy.index)
        # As after a bug: events without a gap between them that leave out what has happened.
        kv.book.enter([Change(ChangeKind.STORED, "o1", Tier.G2, (90, 91))])
        await eventually(lambda: copy.index.num_blocks("o1") == 14)
        assert (await kv.stub.Resync(ResyncRequest(source_id="o1"), timeout=5)).begun
        await eventually(lambda: kv.agrees(offload) and copy.index.num_blocks("o1") == 12)
        assert offload.asked == [(0, 0), (0, 0)]
        assert not (await kv.stub.Resync(ResyncRequest(source_id="o1"), timeout=5)).begun
        assert not (await kv.stub.Resync(ResyncRequest(source_id="unknown"), timeout=5)).begun
        following.cancel()


async def test_a_router_that_finds_a_kv_offload_wrong_has_it_heard_anew_and_believes_it_again() -> None:
    async with scripted_workers("w1", "o1") as (worker, offload), registry() as kv, asyncio.TaskGroup() as tasks:
        keep(worker, offload)
        kv.join(worker, offload)
        await eventually(lambda: kv.agrees(offload))
        core, channels = RoutingCore(load_policy("seconds"), random.Random(0)), ChannelPool()
        replica = Replica(core, channels)
        following = tasks.create_task(replica.run())
        member = Member(id="kv-index-1", kind="kv-index", address=kv.server.address)
        replica.on_change(MemberChange("joined", member))
        await eventually(lambda: core.trust.state("o1") is TrustState.EXACT)
        disbelief = Disbelief(core, lambda: replica.followed, channels)
        await disbelief.ask()
        core.trust.answered("o1", 10_000, 0)
        assert core.distrusted_stores(time.monotonic()) == {"o1"}
        await disbelief.ask()
        await eventually(lambda: not core.distrusted_stores(time.monotonic()))
        await eventually(lambda: kv.agrees(offload, core.index))
        assert offload.asked == [(0, 0), (0, 0)]
        following.cancel()
        await channels.close()
