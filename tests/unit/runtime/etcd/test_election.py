"""One leads, whoever dies or loses sight of etcd; against a real etcd."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from armature.runtime.election import Election
from armature.runtime.etcd import EtcdClient
from armature.runtime.session import Session
from tests.support.etcd import EtcdServer
from tests.support.eventually import eventually

KEY = "/armature/~own/e/planner/leader"
TTL_S = 2


class Candidate:
    def __init__(self, client: EtcdClient, name: str) -> None:
        self.session = Session(client, ttl_s=TTL_S)
        self.changes: list[bool] = []
        self.election = Election(client, self.session, KEY, name)
        self.election.on_change = self.changes.append


@asynccontextmanager
async def campaigning(client: EtcdClient, name: str) -> AsyncIterator[Candidate]:
    candidate = Candidate(client, name)
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(candidate.session.run()), tasks.create_task(candidate.election.run())]
        try:
            yield candidate
        finally:
            for task in running:
                task.cancel()


async def test_one_of_two_leads_and_the_other_takes_over_when_it_leaves(client: EtcdClient) -> None:
    async with campaigning(client, "a") as first:
        await eventually(lambda: first.election.is_leader)
        async with campaigning(client, "b") as second:
            await eventually(lambda: second.election.leader == "a")
            assert not second.election.is_leader
            await first.session.close()
            await eventually(lambda: second.election.is_leader and first.election.leader == "b")
            assert not first.election.is_leader
            await eventually(lambda: first.changes == [True, False])
            assert second.changes == [True]


async def test_a_leader_that_says_nothing_more_is_followed_when_its_lease_ends(client: EtcdClient) -> None:
    async with campaigning(client, "a") as first:
        await eventually(lambda: first.election.is_leader)
    async with campaigning(client, "b") as second:
        await eventually(lambda: second.election.leader == "a")
        await eventually(lambda: second.election.is_leader)


async def test_whoever_does_not_reach_etcd_does_not_lead(server: EtcdServer, client: EtcdClient) -> None:
    async with campaigning(client, "a") as one:
        await eventually(lambda: one.election.is_leader)
        await server.kill()
        await eventually(lambda: one.changes == [True, False])
        await server.start()
        await eventually(lambda: one.changes == [True, False, True])
