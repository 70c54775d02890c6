"""Blocks leave host memory for the tiers below, and go past one that takes nothing in."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import pytest

from armature.engines.host_memory import HostBlockMemory
from armature.index.tiers import Tier
from armature.kv_store.lower_store import Block, LowerStore, Problem
from armature.kv_store.mover import Mover
from armature.offload.copies import Found
from armature.offload.policy import TierShape, offload_policy_of
from armature.offload.store import TierStore
from tests.support.eventually import eventually
from tests.support.offloading import content, digest

BLOCK_BYTES = 4096
SIZES = {Tier.G2: 4, Tier.G3: 16, Tier.G4: 16}


class MemoryStore:
    """A tier in a dictionary; `problem` is what becomes of everything that is written to it."""

    def __init__(self) -> None:
        self.held: dict[bytes, bytes] = {}
        self.problem: Problem | None = None

    async def write(self, blocks: Sequence[Block]) -> list[Problem | None]:
        if self.problem is None:
            self.held |= {block.digest: bytes(block.data) for block in blocks}
        return [self.problem] * len(blocks)

    async def read(self, blocks: Sequence[Block]) -> list[Problem | None]:
        for block in blocks:
            block.data[:] = self.held[block.digest]
        return [None] * len(blocks)

    async def forget(self, digests: Sequence[bytes]) -> None:
        for one in digests:
            self.held.pop(one, None)

    async def found(self) -> Mapping[int, Found]:
        return {}

    async def close(self) -> None: ...


class World:
    """Host memory with two stores below it."""

    def __init__(self) -> None:
        policy = offload_policy_of({tier: {"admission": "all"} for tier in ("g2", "g3", "g4")})
        shapes = {
            tier: TierShape(num_blocks=size, block_bytes=BLOCK_BYTES, read_bytes_per_s=1e9)
            for tier, size in SIZES.items()
        }
        self.tiers = TierStore(policy, shapes)
        self.pool = HostBlockMemory(SIZES[Tier.G2], BLOCK_BYTES)
        self.disk, self.remote = MemoryStore(), MemoryStore()
        stores: dict[Tier, LowerStore] = {Tier.G3: self.disk, Tier.G4: self.remote}
        self.mover = Mover(self.tiers, self.pool, stores, lambda: None)

    async def put(self, number: int) -> None:
        """Have a block in host memory, and wait until what goes for the next one has gone."""
        made = self.tiers.reserve([digest(number)], 0.0)
        (slot,) = made.slots
        assert slot is not None
        self.pool.write([slot], content(number, BLOCK_BYTES))
        self.tiers.commit(made.reservation_id, 0.0)
        self.mover.wake()
        await eventually(lambda: not self.tiers.wants_copies)


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    found = World()
    running = asyncio.create_task(found.mover.run())
    await asyncio.sleep(0)
    yield found
    running.cancel()
    await asyncio.wait({running})
    found.tiers.check()


async def test_what_leaves_memory_goes_to_the_next_tier_only() -> None:
    async with world() as here:
        for number in range(8):
            await here.put(number)
        await eventually(lambda: digest(0) in here.disk.held)
        assert here.disk.held[digest(0)] == content(0, BLOCK_BYTES)
        assert not here.remote.held


@pytest.mark.parametrize("problem", [Problem.FULL, Problem.FAILED])
async def test_a_disk_that_takes_nothing_is_passed_by(problem: Problem) -> None:
    async with world() as here:
        here.disk.problem = problem
        for number in range(8):
            await here.put(number)
        await eventually(lambda: digest(0) in here.remote.held)
        assert here.remote.held[digest(0)] == content(0, BLOCK_BYTES)
        await eventually(lambda: here.tiers.find([digest(0)]) == [Tier.G4])
        assert not here.disk.held


async def test_the_last_tier_that_takes_nothing_costs_its_blocks_and_no_more() -> None:
    async with world() as here:
        here.disk.problem = here.remote.problem = Problem.AWAY
        for number in range(8):
            await here.put(number)
        assert here.tiers.find([digest(7)]) == [Tier.G2]
        assert here.tiers.find([digest(0)]) == []
