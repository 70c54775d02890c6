"""Reads between real processes, over process memory (NIXL's choice on one machine) and over TCP."""

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator

import numpy as np
import pytest

from armature.runtime.errors import StartError
from armature.transfer.nixl_agent import NixlAgent
from armature.transfer.region import ReadError, Region
from tests.support.freezing import freeze
from tests.support.nixl_peer import nixl_peer, pool

ENVIRONMENTS = {"process memory": {}, "tcp": {"UCX_TLS": "tcp"}}
BLOCK_BYTES = 65536
NUM_BLOCKS = 64


@pytest.fixture(params=list(ENVIRONMENTS))
def env(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    chosen = ENVIRONMENTS[request.param]
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    return chosen


class Reader:
    def __init__(self, agent: NixlAgent, memory: np.ndarray) -> None:
        self.agent = agent
        self.memory = memory


@pytest.fixture
async def reader(env: dict[str, str]) -> AsyncIterator[Reader]:
    memory, region = pool(NUM_BLOCKS, BLOCK_BYTES)
    agent = await NixlAgent.start(region)
    yield Reader(agent, memory)
    await agent.close()


async def test_blocks_arrive_where_they_were_asked_for(reader: Reader, env: dict[str, str]) -> None:
    async with nixl_peer(NUM_BLOCKS, BLOCK_BYTES, **env) as peer:
        rng = random.Random(1)
        local, remote = rng.sample(range(NUM_BLOCKS), 40), rng.sample(range(NUM_BLOCKS), 40)
        await reader.agent.read(peer.metadata, peer.region, local, remote)
        assert (reader.memory[local] == np.array(remote, np.uint8)[:, None]).all()
        untouched = [block for block in range(NUM_BLOCKS) if block not in local]
        assert not reader.memory[untouched].any()


async def test_one_large_block_arrives_although_there_are_two_readers() -> None:
    (memory, region), (far_memory, far_region) = pool(2, 4 << 20), pool(2, 4 << 20)
    far_memory[1] = 7
    reader, far = await NixlAgent.start(region), await NixlAgent.start(far_region)
    with far.attending():
        await asyncio.wait_for(reader.read(far.metadata, far_region, [0], [1]), 10)
    assert (memory[0] == 7).all() and not memory[1].any()
    await reader.close()
    await far.close()


async def test_many_reads_at_once_all_end(reader: Reader, env: dict[str, str]) -> None:
    async with nixl_peer(NUM_BLOCKS, BLOCK_BYTES, **env) as peer:
        reads = [reader.agent.read(peer.metadata, peer.region, [i], [NUM_BLOCKS - 1 - i]) for i in range(NUM_BLOCKS)]
        await asyncio.wait_for(asyncio.gather(*reads), 10)
        assert (reader.memory[:, 0] == np.arange(NUM_BLOCKS - 1, -1, -1)).all()


async def test_damaged_metadata_is_refused_and_the_peer_is_not_lost(reader: Reader, env: dict[str, str]) -> None:
    async with nixl_peer(NUM_BLOCKS, BLOCK_BYTES, **env) as peer:
        await reader.agent.read(peer.metadata, peer.region, [0], [1])
        for damaged in (b"", b"garbage", peer.metadata[:-1], peer.metadata[: len(peer.metadata) // 2]):
            with pytest.raises(ReadError) as failed:
                await reader.agent.read(damaged, peer.region, [0], [2])
            assert failed.value.reason == "invalid"
        await reader.agent.read(peer.metadata, peer.region, [0], [3])
        assert (reader.memory[0] == 3).all()


async def test_blocks_outside_of_a_pool_are_refused(reader: Reader, env: dict[str, str]) -> None:
    async with nixl_peer(NUM_BLOCKS, BLOCK_BYTES, **env) as peer:
        for local, remote in (([NUM_BLOCKS], [0]), ([0], [NUM_BLOCKS]), ([-1], [0]), ([0, 1], [0])):
            with pytest.raises(ReadError, match="invalid"):
                await reader.agent.read(peer.metadata, peer.region, local, remote)
        halves = Region(peer.region.base_address, BLOCK_BYTES // 2, NUM_BLOCKS)
        with pytest.raises(ReadError, match="invalid"):
            await reader.agent.read(peer.metadata, halves, [0], [0])


async def test_a_killed_peer_fails_reads_quickly_and_its_successor_is_read(reader: Reader, env: dict[str, str]) -> None:
    async with (
        nixl_peer(NUM_BLOCKS, BLOCK_BYTES, **env) as peer,
        nixl_peer(NUM_BLOCKS, BLOCK_BYTES, **env) as next_peer,
    ):
        await reader.agent.read(peer.metadata, peer.region, [0], [1])
        peer.signal(signal.SIGKILL)
        await peer.process.wait()
        started_s = time.monotonic()
        for _ in range(2):  # the second one meets a peer that is forgotten already
            with pytest.raises(ReadError):
                await asyncio.wait_for(reader.agent.read(peer.metadata, peer.region, [0], [1]), 5)
        assert time.monotonic() - started_s < 2.0
        await reader.agent.read(next_peer.metadata, next_peer.region, [0], [9])
        assert (reader.memory[0] == 9).all()


@pytest.mark.parametrize("ending", [signal.SIGCONT, signal.SIGKILL], ids=["it goes on", "it is killed"])
async def test_a_frozen_peer_keeps_its_read_open_until_it_wakes_or_dies(
    monkeypatch: pytest.MonkeyPatch, ending: signal.Signals
) -> None:
    monkeypatch.setenv("UCX_TLS", "tcp")  # over process memory a read needs no help of the peer
    memory, region = pool(NUM_BLOCKS, BLOCK_BYTES)
    agent = await NixlAgent.start(region)
    async with nixl_peer(NUM_BLOCKS, BLOCK_BYTES, UCX_TLS="tcp") as peer:
        await agent.read(peer.metadata, peer.region, [0], [1])
        freeze(peer.process.pid)
        read = agent.read(peer.metadata, peer.region, [1, 2], [11, 12])
        done, _ = await asyncio.wait({read}, timeout=0.3)
        assert not done
        peer.signal(ending)
        await asyncio.wait({read}, timeout=10)
        if ending is signal.SIGCONT:
            read.result()
            assert (memory[[1, 2]] == np.array([[11], [12]])).all()
        else:
            assert isinstance(read.exception(), ReadError)
    await agent.close()


async def test_reads_after_the_end_fail(env: dict[str, str]) -> None:
    memory, region = pool(4, 4096)
    agent = await NixlAgent.start(region)
    await agent.close()
    with pytest.raises(ReadError, match="unavailable"):
        await agent.read(agent.metadata, region, [0], [1])
    assert not memory.any()


async def test_memory_that_nixl_cannot_register_is_told_at_the_start() -> None:
    with pytest.raises(StartError, match=r"NIXL did not start.*--transport grpc"):
        await NixlAgent.start(Region(4096, 4096, 4, "VRAM", 0))


async def test_a_home_that_cannot_be_read_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/nowhere/at/all")
    memory, region = pool(4, 4096)
    agent = await NixlAgent.start(region)
    await agent.close()
    assert not memory.any()
