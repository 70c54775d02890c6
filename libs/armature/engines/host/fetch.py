"""Brings a prompt's KV blocks from a prefill worker into blocks that the engine has reserved.

Blocks are read batch by batch while the rest of the prompt is still being computed there. A block counts only when the
bytes that arrived end with the digest that we have computed ourselves. Whatever goes wrong costs time only: what has
landed is used, the engine computes the rest, and blocks that a late read may still overwrite stay out of use until
that read has ended.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import grpc
from opentelemetry.trace import Span

from armature.blocks.hashing import DIGEST_BYTES
from armature.engines.engine import Engine
from armature.engines.host import metrics
from armature.engines.host.prefill_call import PrefillCall
from armature.runtime import telemetry
from armature.runtime.channels import ChannelPool
from armature.runtime.errors import PeerError
from armature.runtime.tasks import Spawn, forget_outcome
from armature.scheduling.request import Reserved
from armature.transfer.region import ReadError
from armature.transfer.source import Source
from armature.transfer.transports import Transport, Transports
from armature.v1.worker_pb2 import PrefillStart, StagedBlocks

log = logging.getLogger(__name__)

MAX_READ_BYTES = 32 * 1024 * 1024
"""Of one read: milliseconds over NIXL, so that reads of several prompts take turns and land early."""
SETTLE_GRACE_S = 0.05
"""A read that is given up is most likely about to end; waiting for that is cheaper than a quarantine."""
AVOID_S = 5.0
"""After a sign of death nobody waits for that worker again for so long; then membership tells routers as well."""
_SIGNS_OF_DEATH = frozenset({"timeout", "unavailable", "deadline_exceeded", "disconnected"})


@dataclass(frozen=True, kw_only=True)
class FetchLimits:
    """How long to wait before computing the rest of a prompt here."""

    read_timeout_s: float = 5.0
    """For one read, and for a prefill worker's first answer."""
    prefill_timeout_s: float = 60.0
    """For the next blocks of a prompt that is being computed."""
    call_timeout_s: float = 600.0
    """For a whole prompt."""
    max_fetches: int = 32
    """Prompts that are fetched at the same time; further ones wait."""


@dataclass(slots=True)
class FetchReport:
    """How a fetch went; complete when it has ended."""

    transport: str = ""
    blocks: int = 0
    """Landed, from the first reserved one on."""
    size_bytes: int = 0
    reading_s: float = 0.0
    prefill_cached_tokens: int = 0
    failure: str = ""
    """One word why not everything was fetched; empty if all was."""


@dataclass(frozen=True, slots=True)
class FetchOrder:
    """What to fetch: the prefill worker's address, what to ask of it, and where to put what it computes."""

    address: str
    start: PrefillStart
    reserved: Reserved
    traceparent: str = ""


class Fetcher:
    """Runs fetches for one engine."""

    def __init__(
        self, engine: Engine, transports: Transports, channels: ChannelPool, spawn: Spawn, limits: FetchLimits
    ) -> None:
        self.engine = engine
        self.transports = transports
        self.channels = channels
        self.spawn = spawn
        self.limits = limits
        self._slots = asyncio.Semaphore(limits.max_fetches)
        self._avoided: dict[str, float] = {}
        self.bytes_per_s = 0.0
        """Of recent reads; 0 until there was one."""

    async def fetch(self, order: FetchOrder, report: FetchReport) -> None:
        """Fetch, then end the engine's wait for remote blocks, also when cancelled. `report` tells how it goes."""
        pull = _Pull(self, order, report)
        try:
            async with self._slots:
                await pull.run()
        except (ReadError, PeerError, TimeoutError, grpc.aio.AioRpcError) as error:
            report.failure = _reason(error)
            if report.failure in _SIGNS_OF_DEATH:
                self._avoid(order.address)
            log.warning("fetching %s from %s: %s", order.start.request_id, order.address, _explain(error))
        except asyncio.CancelledError:
            report.failure = "cancelled"
            raise
        finally:
            await pull.finish()

    def is_avoided(self, address: str) -> bool:
        """Whether a fetch from there has just failed in a way that the next one would, too."""
        return self._avoided.get(address, 0.0) > time.monotonic()

    def _avoid(self, address: str) -> None:
        now_s = time.monotonic()
        self._avoided = {known: until_s for known, until_s in self._avoided.items() if until_s > now_s}
        self._avoided[address] = now_s + AVOID_S

    def measured(self, size_bytes: int, seconds: float) -> None:
        """Let one read count for `bytes_per_s`."""
        rate = size_bytes / max(seconds, 1e-6)
        self.bytes_per_s = rate if not self.bytes_per_s else 0.8 * self.bytes_per_s + 0.2 * rate


class _Pull:
    """One fetch: its call, how far it has come, and the read in flight."""

    def __init__(self, fetcher: Fetcher, order: FetchOrder, report: FetchReport) -> None:
        self._fetcher = fetcher
        self._order = order
        self._report = report
        self._call: PrefillCall | None = None
        self._span: Span | None = None
        self._settled: asyncio.Future[None] | None = None
        self._reading: Sequence[int] = ()

    async def run(self) -> None:
        """Read until everything is here, or raise."""
        order, limits = self._order, self._fetcher.limits
        call = PrefillCall(self._fetcher.channels.get(order.address), limits.call_timeout_s, order.traceparent)
        self._call = call
        source = Source.of(order.address, await call.start(order.start, limits.read_timeout_s))
        block_bytes = self._fetcher.engine.memory.block_bytes
        if source.region.block_bytes != block_bytes:
            raise PeerError(f"a block has {source.region.block_bytes} bytes there, {block_bytes} here")
        transport = self._fetcher.transports.choose(source)
        self._report.transport = transport.name
        at_once = max(1, MAX_READ_BYTES // block_bytes)
        while self._report.blocks < len(order.reserved.block_ids):
            update = await call.update(limits.prefill_timeout_s)
            if update.WhichOneof("step") != "blocks":
                raise PeerError("the prefill worker has ended before the last block")
            remote_ids = self._check(update.blocks)
            self._span = self._span or telemetry.start_span("transfer", traceparent=order.traceparent)
            for first in range(0, len(remote_ids), at_once):
                await self._read(transport, source, remote_ids[first : first + at_once])

    def _check(self, staged: StagedBlocks) -> Sequence[int]:
        """The ids of the blocks that we want of these, the next ones; each must hold what we would compute."""
        reserved, blocks = self._order.reserved, self._report.blocks
        self._report.prefill_cached_tokens = max(self._report.prefill_cached_tokens, staged.cached_tokens)
        skip = reserved.first_block + blocks - staged.first_block
        wanted = reserved.digests[blocks : blocks + max(0, len(staged.block_ids) - skip)]
        offered = staged.digests[skip * DIGEST_BYTES :][: len(wanted) * DIGEST_BYTES]
        if skip < 0 or b"".join(wanted) != offered:
            raise ReadError("mismatch", "the staged blocks are not the ones asked for")
        return list(staged.block_ids)[skip : skip + len(wanted)]

    async def _read(self, transport: Transport, source: Source, remote_ids: Sequence[int]) -> None:
        engine, report, reserved = self._fetcher.engine, self._report, self._order.reserved
        upto = report.blocks + len(remote_ids)
        local_ids = reserved.block_ids[report.blocks : upto]
        started_s = time.perf_counter()
        self._reading, self._settled = local_ids, transport.read(source, local_ids, remote_ids)
        done, _ = await asyncio.wait({self._settled}, timeout=self._fetcher.limits.read_timeout_s)
        if not done:
            raise TimeoutError(f"a read over {transport.name} has taken too long")
        self._settled.result()
        self._reading, self._settled = (), None
        if engine.memory.digests(local_ids) != list(reserved.digests[report.blocks : upto]):
            raise ReadError("stale", "the blocks were used for something else while they were read")
        seconds, size_bytes = time.perf_counter() - started_s, len(local_ids) * engine.memory.block_bytes
        self._fetcher.measured(size_bytes, seconds)
        report.reading_s += seconds
        report.size_bytes += size_bytes
        report.blocks = upto
        engine.land(reserved.request_id, upto)

    async def finish(self) -> None:
        """Hand the blocks back to the engine at once, then let the prefill worker free its own."""
        try:
            if self._settled is not None:
                await asyncio.wait({self._settled}, timeout=SETTLE_GRACE_S)
        finally:
            self._hand_over()
            if self._span is not None:
                report = self._report
                self._span.set_attribute("transport", report.transport)
                self._span.set_attribute("transferred_bytes", report.size_bytes)
                self._span.set_attribute("reading_s", report.reading_s)
                self._span.set_attribute("failure", report.failure)
                self._span.end()
            if self._call is not None:
                self._call.close_soon(self._fetcher.spawn)

    def _hand_over(self) -> None:
        engine, report, request_id = self._fetcher.engine, self._report, self._order.reserved.request_id
        count(report)
        if self._settled is None or self._settled.done():
            if self._settled is not None:
                forget_outcome(self._settled)
            engine.finish_remote(request_id, report.blocks)
            return
        in_doubt = tuple(self._reading)
        engine.finish_remote(request_id, report.blocks, in_doubt)

        def free(settled: asyncio.Future[None]) -> None:
            forget_outcome(settled)
            engine.unquarantine(in_doubt)

        self._settled.add_done_callback(free)


def count(report: FetchReport) -> None:
    """Add an ended fetch to the metrics."""
    if report.failure:
        metrics.fetch_failures.labels(report.failure).inc()
    else:
        metrics.fetches.labels(report.transport).inc()
    if report.size_bytes:
        metrics.transferred_bytes.labels(report.transport).inc(report.size_bytes)
        metrics.transfer_s.labels(report.transport).observe(report.reading_s)


def _explain(error: Exception) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return str(error) or type(error).__name__


def _reason(error: Exception) -> str:
    if isinstance(error, ReadError):
        return error.reason
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, grpc.aio.AioRpcError):
        return error.code().name.lower()
    return "protocol"
