"""Copies blocks between host memory, disk and remote store: what the tiers want, in batches, a few at a time."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby

from armature.engines.host_memory import HostBlockMemory
from armature.index.tiers import Tier
from armature.kv_store import metrics
from armature.kv_store.lower_store import GONE, UNABLE, Block, LowerStore, Problem
from armature.kv_store.speed import Speed
from armature.offload.cascade import CopyJob
from armature.offload.store import TierStore
from armature.runtime.pulse import Pulse

LANES = 4
"""Batches under way at a time: one that waits for a slow tier must not hold up the others."""
_BATCH_BYTES = 4 * 1024 * 1024
"""Milliseconds on a disk: a prompt's blocks that are asked for wait no longer than that for what is under way."""


class Mover:
    """Does the store's copies. `moved` is called after each batch, and after it `news` fires."""

    def __init__(
        self,
        tiers: TierStore,
        pool: HostBlockMemory,
        stores: Mapping[Tier, LowerStore],
        moved: Callable[[], None],
    ) -> None:
        self._tiers = tiers
        self._pool = pool
        self._stores = stores
        self._moved = moved
        self._at_once = max(1, _BATCH_BYTES // pool.block_bytes)
        self._wanted = Pulse()
        self.writing = {tier: Speed() for tier in stores}
        self.reading = {tier: Speed() for tier in stores}
        for tier in stores:
            metrics.watch_speed(tier, "write", lambda speed=self.writing[tier]: speed.bytes_per_s)
            metrics.watch_speed(tier, "read", lambda speed=self.reading[tier]: speed.bytes_per_s)

    def wake(self) -> None:
        """There may be something to do."""
        if self._tiers.wants_copies:
            self._wanted.fire()

    async def run(self) -> None:
        """Copy until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for number in range(LANES):
                tasks.create_task(self._run_lane(), name=f"copies {number}")

    async def _run_lane(self) -> None:
        while True:
            jobs = self._tiers.take_copies(time.monotonic(), self._at_once)
            if not jobs:
                await self._wanted.wait()
                continue
            for (source, target), group in groupby(jobs, lambda job: (job.source.tier, job.target.tier)):
                await self._copy(list(group), source, target)
            self._moved()
            self.wake()

    async def _copy(self, jobs: Sequence[CopyJob], source: Tier, target: Tier) -> None:
        if source is Tier.G2:
            found = [self._block(job, job.target.slot, job.source.slot) for job in jobs]
            await self._write(target, jobs, found)
        elif target is Tier.G2:
            found = [self._block(job, job.source.slot, job.target.slot) for job in jobs]
            self._finish(jobs, source, await self._read(source, found))
        else:
            await self._copy_below(jobs, source, target)

    async def _copy_below(self, jobs: Sequence[CopyJob], source: Tier, target: Tier) -> None:
        buffers = [memoryview(bytearray(self._pool.block_bytes)) for _ in jobs]
        read = [Block(job.digest, job.source.slot, data) for job, data in zip(jobs, buffers, strict=True)]
        problems = await self._read(source, read)
        failed = [job for job, problem in zip(jobs, problems, strict=True) if problem is not None]
        self._finish(failed, source, [problem for problem in problems if problem is not None])
        good = [
            (job, Block(job.digest, job.target.slot, data, job.tenant))
            for job, data, problem in zip(jobs, buffers, problems, strict=True)
            if problem is None
        ]
        if good:
            await self._write(target, [job for job, _ in good], [block for _, block in good])

    async def _write(self, tier: Tier, jobs: Sequence[CopyJob], blocks: Sequence[Block]) -> None:
        started_s = time.monotonic()
        problems = await self._stores[tier].write(blocks)
        size_bytes = self._measure(tier, "write", problems, time.monotonic() - started_s, self.writing[tier])
        metrics.written_bytes.labels(tier.name.lower()).inc(size_bytes)
        self._finish(jobs, None, problems)
        for job, problem in zip(jobs, problems, strict=True):
            if problem in UNABLE:
                self._tiers.pass_on(job.digest, tier)

    async def _read(self, tier: Tier, blocks: Sequence[Block]) -> list[Problem | None]:
        started_s = time.monotonic()
        problems = await self._stores[tier].read(blocks)
        size_bytes = self._measure(tier, "read", problems, time.monotonic() - started_s, self.reading[tier])
        metrics.read_bytes.labels(tier.name.lower()).inc(size_bytes)
        if size_bytes:
            self._tiers.measured(tier, self.reading[tier].bytes_per_s)
        return problems

    def _measure(
        self, tier: Tier, operation: str, problems: Sequence[Problem | None], taken_s: float, speed: Speed
    ) -> int:
        """Count a batch; how many bytes of it went well."""
        size_bytes = problems.count(None) * self._pool.block_bytes
        if size_bytes:
            speed.measured(size_bytes, taken_s)
            metrics.seconds.labels(operation, tier.name.lower()).observe(taken_s)
        for problem in problems:
            if problem is not None:
                metrics.problems.labels(tier.name.lower(), problem.value).inc()
        return size_bytes

    def _finish(self, jobs: Sequence[CopyJob], source: Tier | None, problems: Sequence[Problem | None]) -> None:
        """Tell the tiers how copies went; `source`: what turned out to be gone there is forgotten."""
        now_s = time.monotonic()
        for job, problem in zip(jobs, problems, strict=True):
            self._tiers.finish_copy(job.job_id, now_s, is_good=problem is None)
            if source is not None and problem in GONE:
                self._tiers.evict([job.digest], source)

    def _block(self, job: CopyJob, slot: int, pool_slot: int) -> Block:
        return Block(job.digest, slot, self._pool.view(pool_slot), job.tenant)
