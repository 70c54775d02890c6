"""Reads blocks from elsewhere into a reservation of the engine, in order, and hands it back whatever happens.

A block counts only when the bytes that arrived end with the digest that we have computed ourselves. What has landed is
used, the engine computes the rest, and blocks that a late read may still overwrite stay out of use until that read has
ended.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grpc

from armature.engines.engine import BlockEngine
from armature.runtime.tasks import forget_outcome
from armature.scheduling.request import Reserved
from armature.transfer.region import ReadError
from armature.transfer.source import Source
from armature.transfer.transports import Transport

MAX_READ_BYTES = 32 * 1024 * 1024
"""Of one read: milliseconds over NIXL, so that reads of several prompts take turns and land early."""
SETTLE_GRACE_S = 0.05
"""A read that is given up is most likely about to end; waiting for that is cheaper than a quarantine."""


@dataclass(slots=True)
class LandingReport:
    """How it goes; complete when it has ended."""

    transport: str = ""
    blocks: int = 0
    """Landed, from the first reserved one on."""
    size_bytes: int = 0
    reading_s: float = 0.0
    failure: str = ""
    """One word why not everything has landed; empty if all has."""


class Landing:
    """One reservation. `measured` is told the bytes and seconds of every read."""

    def __init__(
        self, engine: BlockEngine, reserved: Reserved, report: LandingReport, measured: Callable[[int, float], None]
    ) -> None:
        self._engine = engine
        self._reserved = reserved
        self._report = report
        self._measured = measured
        self._settled: asyncio.Future[None] | None = None
        self._reading: Sequence[int] = ()

    @property
    def missing_blocks(self) -> int:
        return len(self._reserved.block_ids) - self._report.blocks

    async def read(self, transport: Transport, source: Source, remote_ids: Sequence[int], timeout_s: float) -> None:
        """Read the next blocks; each read of them has the timeout.

        Raises:
            TimeoutError: a read did not end.
            ReadError: it failed, or brought something else.
        """
        self._report.transport = transport.name
        at_once = max(1, MAX_READ_BYTES // self._engine.memory.block_bytes)
        for first in range(0, len(remote_ids), at_once):
            await self._read_some(transport, source, remote_ids[first : first + at_once], timeout_s)

    async def _read_some(
        self, transport: Transport, source: Source, remote_ids: Sequence[int], timeout_s: float
    ) -> None:
        engine, report, reserved = self._engine, self._report, self._reserved
        upto = report.blocks + len(remote_ids)
        local_ids = reserved.block_ids[report.blocks : upto]
        started_s = time.perf_counter()
        self._reading, self._settled = local_ids, transport.read(source, local_ids, remote_ids)
        done, _ = await asyncio.wait({self._settled}, timeout=timeout_s)
        if not done:
            raise TimeoutError(f"a read over {transport.name} has taken too long")
        self._settled.result()
        self._reading, self._settled = (), None
        if engine.memory.digests(local_ids) != list(reserved.digests[report.blocks : upto]):
            raise ReadError("stale", "the blocks were used for something else while they were read")
        seconds, size_bytes = time.perf_counter() - started_s, len(local_ids) * engine.memory.block_bytes
        self._measured(size_bytes, seconds)
        report.reading_s += seconds
        report.size_bytes += size_bytes
        report.blocks = upto
        engine.land(reserved.request_id, upto)

    async def finish(self) -> None:
        """End the engine's wait; blocks of a read that goes on are given to nobody until it has ended."""
        try:
            if self._settled is not None:
                await asyncio.wait({self._settled}, timeout=SETTLE_GRACE_S)
        finally:
            self._hand_over()

    def _hand_over(self) -> None:
        engine, request_id, landed = self._engine, self._reserved.request_id, self._report.blocks
        if self._settled is None or self._settled.done():
            if self._settled is not None:
                forget_outcome(self._settled)
            engine.finish_remote(request_id, landed)
            return
        in_doubt = tuple(self._reading)
        engine.finish_remote(request_id, landed, in_doubt)

        def free(settled: asyncio.Future[None]) -> None:
            forget_outcome(settled)
            engine.unquarantine(in_doubt)

        self._settled.add_done_callback(free)


def explain(error: Exception) -> str:
    """For a log."""
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return str(error) or type(error).__name__


def reason_of(error: Exception) -> str:
    """One word for counting."""
    if isinstance(error, ReadError):
        return error.reason
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, grpc.aio.AioRpcError):
        return error.code().name.lower()
    return "protocol"
