"""Engines without KV events: what routers send there is what all of them assume to be there."""

import asyncio
import secrets
from pathlib import Path

from armature.index.packing import pack_hashes
from armature.index.trust import TrustState
from armature.runtime.assumptions import Assumptions
from armature.runtime.etcd import EtcdClient
from armature.v1.common_pb2 import Member
from armature.v1.kv_index_pb2 import AssumeRequest, MatchRequest, WorkerChange
from tests.services.kv_index.harness import Copy, registry
from tests.services.router.test_processes import Cell, Gateway, metrics
from tests.support.eventually import eventually
from tests.support.scripted_worker import scripted_workers


def routed(worker_id: str, *blocks: int) -> AssumeRequest.Routed:
    return AssumeRequest.Routed(worker_id=worker_id, sequence_hashes=pack_hashes(blocks))


async def test_assumed_blocks_are_found_and_told_to_followers() -> None:
    async with scripted_workers("w1", "w2") as (silent, loud), registry() as kv, asyncio.TaskGroup() as tasks:
        silent.has_events = False
        kv.join(silent, loud)
        copy = Copy()
        following = tasks.create_task(kv.follow(copy))
        await eventually(lambda: copy.index is not None)
        asked = [routed("w1", 1, 2, 3), routed("w1", 1, 2, 4), routed("w2", 1), routed("gone", 1)]
        await kv.stub.Assume(AssumeRequest(routed=asked), timeout=10)
        answer = await kv.stub.Match(MatchRequest(sequence_hashes=pack_hashes([1, 2, 4, 5])), timeout=10)
        assert [(match.worker_id, match.blocks, match.trust) for match in answer.matches] == [
            ("w1", 3, WorkerChange.KIND_ASSUMED)
        ]
        await eventually(lambda: copy.index is not None and copy.index.match([1, 2, 3]) == {"w1": 3})
        assert silent.asked == []
        kv.leave(silent)
        assert kv.book.trust.state("w1") is TrustState.STALE
        assert kv.index.worker_ids == ["w2"]
        following.cancel()


async def test_only_silent_workers_are_told_of_and_nobody_waits_when_there_is_no_kv_index() -> None:
    async with scripted_workers("w1", "w2") as (silent, loud), registry() as kv, asyncio.TaskGroup() as tasks:
        silent.has_events = False
        kv.join(silent, loud)
        members = {worker.worker_id: worker.member for worker in (silent, loud)}
        followed: list[Member] = []
        assumptions = Assumptions(members, lambda: followed[0] if followed else None, kv.channels)
        telling = tasks.create_task(assumptions.run())
        assumptions.note("w1", pack_hashes([1, 2]))
        await eventually(lambda: not assumptions._waiting)
        assert kv.index.size().blocks == 0
        member = loud.member
        member.address = kv.server.address
        followed.append(member)
        for worker_id in ("w1", "w2", "unknown"):
            assumptions.note(worker_id, pack_hashes([1, 2, 3]))
        await eventually(lambda: kv.index.match([1, 2, 3]) == {"w1": 3})
        telling.cancel()


async def test_what_one_router_has_sent_there_another_one_counts_on(
    etcd_address: str, etcd: EtcdClient, tmp_path: Path
) -> None:
    cell = Cell(etcd, tmp_path)
    cell.address, cell.namespace = etcd_address, f"silent-{secrets.token_hex(4)}"
    async with scripted_workers("d1", "d2") as workers, cell.service("kv_index"):
        for worker in workers:
            worker.has_events = False
        await cell.join(*workers)
        async with cell.service("router") as first, cell.service("router") as second:
            one, two = Gateway(first), Gateway(second)
            home = (await one.place(tokens=500)).assigned.worker_id

            async def has_heard() -> bool:
                return (await metrics(second))["armature_router_index_blocks"] == 50

            await eventually(has_heard)
            assigned = (await two.place(tokens=500)).assigned
            # Nine of ten assumed blocks are relied on before anything is measured.
            assert (assigned.worker_id, assigned.overlap_tokens) == (home, 450)
            await one.close()
            await two.close()
