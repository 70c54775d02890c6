"""Three etcds, one of which dies: what one server can't show."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path

import pytest

from armature.runtime.children import spawn
from armature.runtime.etcd import EtcdClient
from armature.runtime.etcd_errors import EtcdUnavailableError
from armature.runtime.processes import Child, find_etcd, free_port
from armature.runtime.session import Session
from armature.runtime.watch import PrefixWatch
from tests.support.eventually import eventually

MEMBERS = 3


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[dict[str, Child]]:
    """The members by address."""
    peers = [f"http://127.0.0.1:{free_port()}" for _ in range(MEMBERS)]
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(MEMBERS)]
    names = ",".join(f"m{index}={peer}" for index, peer in enumerate(peers))
    async with AsyncExitStack() as stack:
        members: dict[str, Child] = {}
        for index, (address, peer) in enumerate(zip(addresses, peers, strict=True)):
            command = [str(find_etcd().path), "--name", f"m{index}", "--data-dir", str(tmp_path / f"m{index}")]
            command += ["--listen-client-urls", f"http://{address}", "--advertise-client-urls", f"http://{address}"]
            command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
            command += ["--initial-cluster", names, "--log-level", "warn"]
            members[address] = spawn(f"m{index}", command, log_path=tmp_path / f"m{index}.log")
            stack.push_async_callback(members[address].kill)
        yield members


async def test_watch_session_and_calls_go_on_when_any_member_dies(cluster: dict[str, Child]) -> None:
    client = EtcdClient(list(cluster), timeout_s=3.0)
    watch, told = PrefixWatch(client, "/k", probe_s=0.5, answer_s=1.0), list[str]()
    session = Session(client, ttl_s=20)

    async def follow() -> None:
        async with aclosing(watch.batches()) as batches:
            async for batch in batches:
                told.extend(change.record.value.decode() for change in batch.changes)

    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(follow()), tasks.create_task(session.run())]
        assert await session.put("/session", b"1", timeout_s=60)
        lease_id = session.lease_id
        await eventually(lambda: not watch.is_stale, 60)

        async def write(value: str) -> None:
            async with asyncio.timeout(60):
                while not told or told[-1] != value:
                    try:
                        await client.put("/k", value.encode())
                    except EtcdUnavailableError:
                        continue
                    await eventually(lambda: told and told[-1] == value, 60)

        for value in ("0", "1", "2"):
            await write(value)
        await cluster[client.calls.endpoint.address].kill()
        for value in ("3", "4", "5"):
            await write(value)
        assert await session.put("/session", b"2", timeout_s=60)
        assert session.lease_id == lease_id
        # A write without an answer may have been done and was repeated; nothing else may show up twice or be missing.
        assert list(dict.fromkeys(told)) == ["0", "1", "2", "3", "4", "5"]
        await eventually(lambda: not watch.is_stale, 60)
        await session.close()
        for task in running:
            task.cancel()
    await client.close()
