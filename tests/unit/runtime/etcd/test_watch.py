import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from armature.runtime.etcd import EtcdClient
from armature.runtime.etcd_errors import EtcdUnavailableError
from armature.runtime.watch import Batch, PrefixWatch
from tests.support.etcd import EtcdServer, unused_address
from tests.support.eventually import eventually
from tests.support.wire import Wire

PREFIX = "/watched/"


class Follower:
    """Notes what a watch tells."""

    def __init__(self, client: EtcdClient) -> None:
        self.watch = PrefixWatch(client, PREFIX, probe_s=0.5, answer_s=0.5)
        self.batches: list[Batch] = []

    @property
    def told(self) -> list[tuple[str, str]]:
        """Key and value of every put, in order; `None` as value for a deletion."""
        changes = [change for batch in self.batches for change in batch.changes]
        return [(c.record.key[len(PREFIX) :], "gone" if c.is_deleted else c.record.value.decode()) for c in changes]

    @property
    def holds(self) -> dict[str, str]:
        return {key[len(PREFIX) :]: record.value.decode() for key, record in self.watch.records.items()}

    async def run(self) -> None:
        async with aclosing(self.watch.batches()) as batches:
            async for batch in batches:
                self.batches.append(batch)


@asynccontextmanager
async def following(client: EtcdClient) -> AsyncIterator[Follower]:
    follower = Follower(client)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(follower.run())
        await eventually(lambda: follower.batches)
        yield follower
        running.cancel()


async def put(client: EtcdClient, key: str, value: str = "") -> int:
    """Write until it is written: the server may just be starting, frozen or cut off."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await client.put(PREFIX + key, value.encode())
            except EtcdUnavailableError:
                await asyncio.sleep(0.01)


async def test_what_is_there_comes_first_and_then_every_change(etcd: EtcdClient) -> None:
    await put(etcd, "a", "1")
    async with following(etcd) as follower:
        assert follower.told == [("a", "1")]
        assert not follower.watch.is_stale
        await put(etcd, "a", "2")
        await put(etcd, "b", "1")
        await etcd.delete(PREFIX + "a")
        await eventually(lambda: len(follower.told) == 4)
        assert follower.told[1:] == [("a", "2"), ("b", "1"), ("a", "gone")]
        assert follower.holds == {"b": "1"}
    await etcd.delete_prefix(PREFIX)


async def test_an_empty_prefix_is_told_as_such(etcd: EtcdClient) -> None:
    async with following(etcd) as follower:
        assert follower.batches == [Batch(())]


async def test_no_change_is_lost_or_told_twice_when_the_server_is_killed(
    server: EtcdServer, client: EtcdClient
) -> None:
    # Patient, so that no write is given up and repeated though it was done.
    writer = EtcdClient([server.address], timeout_s=20.0)
    async with following(client) as follower:
        for number in range(50):
            await put(writer, "k", str(number))
        for number in range(50, 150, 50):
            await server.restart()
            # Written while the watch is still finding its way back.
            for value in range(number, number + 50):
                await put(writer, "k", str(value))
        await eventually(lambda: len(follower.told) >= 150)
        assert follower.told == [("k", str(number)) for number in range(150)]
    await writer.close()


async def test_writes_during_a_silence_are_told_once_it_ends(server: EtcdServer) -> None:
    async with Wire.to(server.address) as wire:
        client = EtcdClient([wire.address], timeout_s=1.0)
        writer = EtcdClient([server.address], timeout_s=10.0)
        async with following(client) as follower:
            await put(writer, "k", "0")
            await eventually(lambda: follower.told)
            wire.silence()
            for number in range(1, 100):
                await put(writer, "k", str(number))
            await eventually(lambda: follower.watch.is_stale)
            wire.restore()
            await eventually(lambda: len(follower.told) >= 100)
            assert follower.told == [("k", str(number)) for number in range(100)]
            await eventually(lambda: not follower.watch.is_stale)
            for number in range(100, 200):
                if number % 20 == 0:
                    wire.cut()
                await put(writer, "k", str(number))
            await eventually(lambda: len(follower.told) >= 200)
            assert follower.told == [("k", str(number)) for number in range(200)]
        await client.close()
        await writer.close()


async def test_a_frozen_server_is_noticed_in_seconds_and_heals(server: EtcdServer, client: EtcdClient) -> None:
    async with following(client) as follower:
        await put(client, "k", "before")
        await eventually(lambda: follower.told)
        server.freeze()
        frozen_at = time.monotonic()
        await eventually(lambda: follower.watch.is_stale)
        assert time.monotonic() - frozen_at < 10
        assert follower.holds == {"k": "before"}
        server.thaw()
        await put(client, "k", "after")
        await eventually(lambda: not follower.watch.is_stale and follower.told[-1] == ("k", "after"))
        # The write may have been repeated, the change before the freeze must not.
        assert follower.told.count(("k", "before")) == 1


async def test_a_healthy_server_that_has_nothing_to_say_is_not_left(server: EtcdServer, client: EtcdClient) -> None:
    async with Wire.to(server.address) as wire:
        quiet = EtcdClient([wire.address], timeout_s=5.0)
        async with following(quiet) as follower:
            # Several probes long; a watch that takes quiet for death would connect again and again.
            probed_until = time.monotonic() + 2.0
            await eventually(lambda: time.monotonic() > probed_until or follower.watch.is_stale)
            assert not follower.watch.is_stale
            await put(client, "k", "1")
            await eventually(lambda: follower.told == [("k", "1")])
        await quiet.close()


async def test_after_a_compaction_deletions_are_seen_by_comparison(server: EtcdServer) -> None:
    async with Wire.to(server.address) as wire:
        client = EtcdClient([wire.address], timeout_s=1.0)
        writer = EtcdClient([server.address], timeout_s=10.0)
        await put(writer, "stays", "1")
        await put(writer, "goes", "1")
        async with following(client) as follower:
            wire.silence()
            await eventually(lambda: follower.watch.is_stale)
            await writer.delete(PREFIX + "goes")
            await put(writer, "passing", "1")
            await writer.delete(PREFIX + "passing")
            await writer.compact(await put(writer, "new", "1"))
            wire.cut()
            wire.restore()
            await eventually(lambda: "new" in follower.holds)
            assert follower.told == [("goes", "1"), ("stays", "1"), ("goes", "gone"), ("new", "1")]
            assert not any(batch.is_doubtful for batch in follower.batches)
            # And the watch is a living one again.
            await put(writer, "stays", "2")
            await eventually(lambda: follower.told[-1] == ("stays", "2"))
        await client.close()
        await writer.close()


@pytest.mark.parametrize("writes", [1, 20], ids=["behind our revision", "past our revision"])
async def test_a_wiped_store_is_listed_anew(tmp_path: Path, writes: int) -> None:
    # The same member name, peer address and token give the wiped store the same cluster id.
    peer = f"http://{unused_address()}"
    arguments = ["--initial-cluster-token", "same", "--initial-cluster", f"armature={peer}"]
    arguments += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
    server = EtcdServer(tmp_path / "server", *arguments)
    await server.start()
    client = EtcdClient([server.address], timeout_s=1.0)
    try:
        for key in ("a", "b", "c"):
            await put(client, key, "old")
        async with following(client) as follower:
            await server.kill()
            await eventually(lambda: follower.watch.is_stale)
            await server.wipe_and_restart()
            for number in range(writes):
                await put(client, "b", f"new {number}")
            await eventually(lambda: follower.holds == {"b": f"new {writes - 1}"})
            assert {("a", "gone"), ("c", "gone")} < set(follower.told)
            doubtful = [change for batch in follower.batches if batch.is_doubtful for change in batch.changes]
            assert {PREFIX + "a", PREFIX + "c"} <= {change.record.key for change in doubtful if change.is_deleted}
            await put(client, "d", "1")
            await eventually(lambda: follower.told[-1] == ("d", "1"))
    finally:
        await client.close()
        await server.kill()


async def test_a_watch_moves_to_another_endpoint_when_its_own_goes_silent(server: EtcdServer) -> None:
    async with Wire.to(server.address) as first:
        client = EtcdClient([unused_address(), first.address, server.address], timeout_s=3.0)
        writer = EtcdClient([server.address], timeout_s=10.0)
        async with following(client) as follower:
            await put(writer, "k", "1")
            await eventually(lambda: follower.told == [("k", "1")])
            assert client.calls.endpoint.address == first.address
            first.silence()
            await put(writer, "k", "2")
            await eventually(lambda: follower.told == [("k", "1"), ("k", "2")])
            await eventually(lambda: not follower.watch.is_stale)
            assert client.calls.endpoint.address == server.address
        await client.close()
        await writer.close()


async def test_a_watch_is_opened_again_with_a_new_token(server: EtcdServer) -> None:
    await server.require_password("secret")
    client = EtcdClient([server.address], user="root", password="secret", timeout_s=2.0)
    async with following(client) as follower:
        await put(client, "k", "1")
        await eventually(lambda: follower.told == [("k", "1")])
        await server.restart()  # etcd forgets its tokens
        writer = EtcdClient([server.address], user="root", password="secret", timeout_s=2.0)
        await put(writer, "k", "2")
        await eventually(lambda: follower.told == [("k", "1"), ("k", "2")])
        await writer.close()
    await client.close()
