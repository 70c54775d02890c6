import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from armature.runtime.etcd import EtcdClient
from armature.runtime.membership import MemberChange, MembershipView, Registration, member_key
from armature.runtime.session import Session
from armature.runtime.watch import PrefixWatch
from armature.v1.common_pb2 import MEMBER_STATE_DRAINING, MEMBER_STATE_READY, Member
from tests.support.etcd import EtcdServer
from tests.support.eventually import eventually

TTL_S = 10
SHORT_TTL_S = 2
WORKER = "decode-worker"


def worker(member_id: str, kind: str = WORKER) -> Member:
    return Member(id=member_id, kind=kind, address=f"{member_id}:1", state=MEMBER_STATE_READY)


class Watcher:
    """A view and what it told."""

    def __init__(self, client: EtcdClient, namespace: str, *kinds: str, grace_s: float = 10.0) -> None:
        self.changes: list[MemberChange] = []
        watch = PrefixWatch(client, f"/armature/{namespace}/", probe_s=0.5, answer_s=0.5)
        self.view = MembershipView(
            client, namespace, kinds, on_change=self.changes.append, watch=watch, grace_s=grace_s
        )

    @property
    def told(self) -> list[tuple[str, str]]:
        return [(change.kind, change.member.id) for change in self.changes]


@asynccontextmanager
async def watching(client: EtcdClient, namespace: str, *kinds: str, grace_s: float = 10.0) -> AsyncIterator[Watcher]:
    watcher = Watcher(client, namespace, *kinds, grace_s=grace_s)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(watcher.view.run())
        async with asyncio.timeout(20):
            await watcher.view.loaded()
        yield watcher
        running.cancel()


@asynccontextmanager
async def registered(
    address: str, namespace: str, *members: Member, ttl_s: float = TTL_S
) -> AsyncIterator[list[Registration]]:
    """Each member has a client and a lease of its own, as processes have."""
    clients = [EtcdClient([address], timeout_s=2.0) for _ in members]
    sessions = [Session(client, ttl_s=ttl_s) for client in clients]
    registrations = [Registration(session, namespace) for session in sessions]
    async with asyncio.TaskGroup() as tasks:
        for session, registration, member in zip(sessions, registrations, members, strict=True):
            tasks.create_task(session.run())
            await registration.announce(member)
        yield registrations
        for session in sessions:
            await session.close()
    for client in clients:
        await client.close()


@pytest.fixture
def namespace(request: pytest.FixtureRequest) -> str:
    """A cell of the test's own in the shared etcd."""
    return request.node.name


async def test_a_view_begins_with_who_is_there_and_follows(etcd: EtcdClient, etcd_address: str, namespace: str) -> None:
    async with (
        registered(etcd_address, namespace, worker("a"), worker("r", "router"), worker("g", "gateway")) as three,
        watching(etcd, namespace, WORKER, "router") as watcher,
    ):
        view = watcher.view
        assert set(view.members) == {"a", "r"}
        assert [member.id for member in view.of_kind("router")] == ["r"]
        assert not view.is_stale
        draining = worker("a")
        draining.state = MEMBER_STATE_DRAINING
        await three[0].announce(draining)
        await eventually(lambda: view.members["a"] == draining)
        await three[0].withdraw()
        await eventually(lambda: "a" not in view.members)
        assert watcher.told == [("joined", "a"), ("joined", "r"), ("updated", "a"), ("left", "a")]


async def test_cells_that_share_an_etcd_do_not_meet(etcd: EtcdClient, etcd_address: str, namespace: str) -> None:
    async with (
        registered(etcd_address, namespace + "-2", worker("theirs")),
        registered(etcd_address, namespace, worker("ours")),
        watching(etcd, namespace, WORKER) as watcher,
    ):
        assert set(watcher.view.members) == {"ours"}


async def test_an_empty_cell_is_known_to_be_empty(etcd: EtcdClient, namespace: str) -> None:
    async with watching(etcd, namespace, WORKER) as watcher:
        assert watcher.view.members == {}
        assert not watcher.view.is_stale


async def test_who_stops_prolonging_its_lease_leaves(etcd: EtcdClient, namespace: str) -> None:
    lease = await etcd.grant(1)
    key = member_key(namespace, WORKER, "dead")
    await etcd.put(key, worker("dead").SerializeToString(), lease_id=lease.lease_id)
    async with watching(etcd, namespace, WORKER) as watcher:
        await eventually(lambda: watcher.told == [("joined", "dead"), ("left", "dead")])


async def test_a_changed_kind_is_one_update(etcd: EtcdClient, etcd_address: str, namespace: str) -> None:
    async with (
        registered(etcd_address, namespace, worker("a", "prefill-worker")) as (registration,),
        watching(etcd, namespace) as watcher,
    ):
        assert await registration.announce(worker("a"))
        await eventually(lambda: [member.id for member in watcher.view.of_kind(WORKER)] == ["a"])
        keys = [record.key for record in (await etcd.list(f"/armature/{namespace}/")).records]
        assert keys == [member_key(namespace, WORKER, "a")]
        assert watcher.told == [("joined", "a"), ("updated", "a")]


async def test_while_etcd_is_away_the_last_known_members_are_served_as_stale(
    server: EtcdServer, client: EtcdClient
) -> None:
    async with registered(server.address, "c", worker("a")), watching(client, "c", WORKER) as watcher:
        await eventually(lambda: watcher.told == [("joined", "a")])
        await server.kill()
        await eventually(lambda: watcher.view.is_stale)
        assert set(watcher.view.members) == {"a"}
        await server.start()
        await eventually(lambda: not watcher.view.is_stale)
        assert watcher.told == [("joined", "a")]


async def test_a_frozen_or_wiped_etcd_makes_no_living_member_leave(server: EtcdServer, client: EtcdClient) -> None:
    async with (
        registered(server.address, "c", worker("a"), worker("b"), ttl_s=SHORT_TTL_S),
        watching(client, "c", WORKER) as watcher,
    ):
        await eventually(lambda: set(watcher.view.members) == {"a", "b"})
        server.freeze()
        # Longer than their leases last.
        until = time.monotonic() + 1.5 * SHORT_TTL_S
        await eventually(lambda: watcher.view.is_stale and time.monotonic() > until)
        server.thaw()
        await eventually(lambda: not watcher.view.is_stale)
        await server.wipe_and_restart()
        await eventually(lambda: watcher.view.is_stale)
        await eventually(lambda: not watcher.view.is_stale)
        async with server.client() as reader:
            assert len((await reader.list("/armature/c/")).records) == 2
        assert set(watcher.view.members) == {"a", "b"}
        assert ("left", "a") not in watcher.told
        assert ("left", "b") not in watcher.told


async def test_who_died_while_etcd_was_away_is_dropped_after_its_return(server: EtcdServer, client: EtcdClient) -> None:
    lease = await client.grant(1)
    dead = worker("dead").SerializeToString()
    await client.put(member_key("c", WORKER, "dead"), dead, lease_id=lease.lease_id)
    async with (
        registered(server.address, "c", worker("a")),
        watching(client, "c", WORKER, grace_s=1.0) as watcher,
    ):
        await eventually(lambda: set(watcher.view.members) == {"a", "dead"})
        await server.kill()
        await eventually(lambda: watcher.view.is_stale)
        await server.start()
        await eventually(lambda: set(watcher.view.members) == {"a"})
        await eventually(lambda: not watcher.view.is_stale)
        assert ("left", "a") not in watcher.told


async def test_a_view_that_begins_before_etcd_catches_up(server: EtcdServer) -> None:
    await server.kill()
    client = EtcdClient([server.address], timeout_s=1.0)
    watcher = Watcher(client, "c", WORKER)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(watcher.view.run())
        assert watcher.view.is_stale
        await server.start()
        async with asyncio.timeout(20):
            await watcher.view.loaded()
        assert not watcher.view.is_stale
        running.cancel()
    await client.close()


async def test_what_a_callback_raises_ends_the_view(etcd: EtcdClient, etcd_address: str, namespace: str) -> None:
    def fails(change: MemberChange) -> None:
        raise ZeroDivisionError(change.member.id)

    async with registered(etcd_address, namespace, worker("a")):
        with pytest.raises(ZeroDivisionError, match="a"):
            async with asyncio.timeout(20):
                await MembershipView(etcd, namespace, [WORKER], on_change=fails).run()
