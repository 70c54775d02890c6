"""What a kv-offload keeps counts for the workers of its node, as long as it is there."""

import asyncio

import pytest

from armature.index.prefix_index import Reach
from armature.index.tiers import Tier
from armature.runtime.roster import MemberChange
from armature.v1.common_pb2 import TIER_G2, TIER_G3, KvLayout
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
