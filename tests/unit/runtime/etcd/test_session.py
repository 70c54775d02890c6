import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from armature.runtime.etcd import EtcdClient
from armature.runtime.session import Session
from tests.support.etcd import EtcdServer
from tests.support.eventually import eventually
from tests.support.wire import Wire

TTL_S = 2


class Log:
    """Notes what a session says about itself, and when."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.lost_at_s = 0.0

    def lost(self) -> None:
        self.events.append("lost")
        self.lost_at_s = time.monotonic()

    def regained(self) -> None:
        self.events.append("regained")


@asynccontextmanager
async def running(client: EtcdClient, log: Log | None = None, ttl_s: float = TTL_S) -> AsyncIterator[Session]:
    log = log or Log()
    session = Session(client, ttl_s=ttl_s, on_lost=log.lost, on_regained=log.regained)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(session.run())
        yield session
        await session.close()


async def value(client: EtcdClient, key: str) -> bytes | None:
    record = await client.get(key)
    return record.value if record else None


async def test_keys_live_under_the_lease_and_go_with_it(etcd: EtcdClient) -> None:
    async with running(etcd) as session:
        assert await session.put("/s/a", b"1")
        record = await etcd.get("/s/a")
        assert record is not None
        assert record.lease_id == session.lease_id != 0
        assert await session.put("/s/a", b"2")
        assert await session.put("/s/b", b"1")
        assert await session.remove("/s/b")
        assert [r.value for r in (await etcd.list("/s/")).records] == [b"2"]
        assert session.is_live
    assert (await etcd.list("/s/")).records == ()
    assert not session.is_live
    assert session.lease_id == 0


async def test_a_lease_is_kept_for_longer_than_it_lasts(etcd: EtcdClient) -> None:
    log = Log()
    ttl_s = 3
    async with running(etcd, log, ttl_s) as session:
        await session.put("/kept", b"1")
        lease_id, until = session.lease_id, time.monotonic() + 1.3 * ttl_s
        await eventually(lambda: time.monotonic() > until or log.events)
        assert session.lease_id == lease_id
        assert await value(etcd, "/kept") == b"1"
    assert log.events == []


async def test_a_lease_that_etcd_ended_is_replaced_and_every_key_put_back(etcd: EtcdClient) -> None:
    log = Log()
    async with running(etcd, log) as session:
        await session.put("/ended/a", b"1")
        await session.put("/ended/b", b"2")
        await etcd.revoke(session.lease_id)
        await eventually(lambda: log.events == ["lost", "regained"])
        records = (await etcd.list("/ended/")).records
        assert [(r.key, r.value, r.lease_id) for r in records] == [
            ("/ended/a", b"1", session.lease_id),
            ("/ended/b", b"2", session.lease_id),
        ]


async def test_a_write_finds_out_that_the_lease_has_ended(etcd: EtcdClient) -> None:
    log = Log()
    # The next keepalive is far away.
    async with running(etcd, log, ttl_s=60) as session:
        await session.put("/found/a", b"1")
        await etcd.revoke(session.lease_id)
        assert await session.put("/found/b", b"2")
        assert log.events == ["lost", "regained"]
        assert [r.value for r in (await etcd.list("/found/")).records] == [b"1", b"2"]


async def test_our_own_clock_ends_the_lease_when_etcd_is_frozen(server: EtcdServer, client: EtcdClient) -> None:
    log = Log()
    async with running(client, log) as session:
        assert await session.put("/frozen", b"1", timeout_s=20)
        server.freeze()
        frozen_at_s = time.monotonic()
        await eventually(lambda: log.events == ["lost"])
        # A call that hangs must not keep us from noticing.
        assert log.lost_at_s - frozen_at_s < TTL_S + 5
        assert not session.is_live
        assert not await session.put("/frozen", b"2", timeout_s=0.1)
        assert session.last_error is not None
        server.thaw()
        await eventually(lambda: log.events == ["lost", "regained"])
        await session.settled()
        assert session.last_error is None
        async with server.client() as reader:
            assert await value(reader, "/frozen") == b"2"


async def test_a_lease_outlives_a_short_absence_of_etcd(server: EtcdServer) -> None:
    log = Log()
    client = EtcdClient([server.address], timeout_s=5.0)
    async with running(client, log, ttl_s=30) as session:
        assert await session.put("/short", b"1")
        lease_id = session.lease_id
        await server.restart()
        assert await session.put("/short", b"2", timeout_s=20)
        record = await client.get("/short")
        assert record is not None
        assert (record.value, record.lease_id) == (b"2", lease_id)
    assert log.events == []
    await client.close()


async def test_keys_come_back_after_etcd_was_away_for_longer_than_the_lease(server: EtcdServer) -> None:
    log = Log()
    client = EtcdClient([server.address], timeout_s=5.0)
    async with running(client, log) as session:
        assert await session.put("/long/a", b"1", timeout_s=20)
        assert await session.put("/long/b", b"1", timeout_s=20)
        former = session.lease_id
        await server.kill()
        await eventually(lambda: log.events == ["lost"])
        # Changed while nobody can be told.
        assert not await session.put("/long/a", b"2", timeout_s=0.05)
        assert not await session.remove("/long/b", timeout_s=0.05)
        await server.start()
        await eventually(lambda: log.events == ["lost", "regained"])
        records = (await client.list("/long/")).records
        # The former lease, which etcd revived with its data, took its other keys along.
        assert [(r.key, r.value, r.lease_id) for r in records] == [("/long/a", b"2", session.lease_id)]
        assert await client.keep_alive(former) <= 0
    await client.close()


async def test_nobody_sees_a_key_leave_when_its_lease_is_replaced(server: EtcdServer) -> None:
    log = Log()
    async with Wire.to(server.address) as wire:
        client = EtcdClient([wire.address], timeout_s=1.0)
        other = EtcdClient([server.address], timeout_s=10.0)
        async with running(client, log) as session:
            assert await session.put("/moved", b"1", timeout_s=20)
            before = await other.get("/moved")
            wire.silence()
            await eventually(lambda: log.events == ["lost"])
            # etcd still has the key: its own clock is later than ours. Here: far later.
            assert before is not None
            await other.put("/moved", b"1")
            wire.restore()
            await eventually(lambda: log.events == ["lost", "regained"])
            after = await other.get("/moved")
            assert after is not None
            assert after.create_revision == before.create_revision
            assert after.lease_id == session.lease_id
        await client.close()
        await other.close()


async def test_a_session_that_begins_before_etcd_catches_up(server: EtcdServer) -> None:
    await server.kill()
    client = EtcdClient([server.address], timeout_s=1.0)
    async with running(client) as session:
        assert not await session.put("/early", b"1", timeout_s=0.2)
        await server.start()
        async with asyncio.timeout(20):
            await session.settled()
        async with server.client() as reader:
            assert await value(reader, "/early") == b"1"
    await client.close()


async def test_closing_without_etcd_ends_in_time(server: EtcdServer) -> None:
    client = EtcdClient([server.address], timeout_s=1.0)
    session = Session(client, ttl_s=TTL_S)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(session.run())
        assert await session.put("/closing", b"1", timeout_s=20)
        server.freeze()
        async with asyncio.timeout(10):
            await session.close()
    assert not session.is_live
    await client.close()
    server.thaw()


async def test_a_session_survives_an_end_of_its_token(server: EtcdServer) -> None:
    await server.require_password("secret")
    client = EtcdClient([server.address], user="root", password="secret", timeout_s=2.0)
    async with running(client, ttl_s=10) as session:
        assert await session.put("/token", b"1", timeout_s=20)
        await server.restart()  # etcd forgets its tokens
        assert await session.put("/token", b"2", timeout_s=20)
        assert await value(client, "/token") == b"2"
    await client.close()
