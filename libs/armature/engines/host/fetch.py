"""Brings a prompt's KV blocks from a prefill worker into blocks that the engine has reserved.

Blocks are read batch by batch while the rest of the prompt is still being computed there. Whatever goes wrong costs
time only: what has landed is used, and the engine computes the rest.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grpc
from opentelemetry.trace import Span

from armature.blocks.hashing import DIGEST_BYTES
from armature.engines.engine import BlockEngine
from armature.engines.host import metrics
from armature.engines.host.avoided import Avoided
from armature.engines.host.landing import Landing, LandingReport, explain, reason_of
from armature.engines.host.prefill_call import PrefillCall
from armature.performance.linear import LinearModel
from armature.runtime import telemetry
from armature.runtime.channels import ChannelPool
from armature.runtime.errors import PeerError
from armature.runtime.tasks import Spawn
from armature.scheduling.patience import Patience
from armature.scheduling.request import Reserved
from armature.transfer.region import ReadError
from armature.transfer.source import Source
from armature.transfer.transports import Transports
from armature.v1.common_pb2 import TierTokens
from armature.v1.worker_pb2 import PrefillStart, StagedBlocks

log = logging.getLogger(__name__)

UNMEASURED_BYTES_PER_S = 1e9
"""Expected of the first reads from peers: such that they are tried where prompts take long."""
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
    pulls: bool = False
    """Whether it reads what peers have cached."""


@dataclass(slots=True)
class FetchReport(LandingReport):
    """How a fetch went; complete when it has ended."""

    prefill_cached_tokens: int = 0
    onboarded: Sequence[TierTokens] = ()
    """Of those, what the prefill worker has read from tiers below its device."""
    onboard_s: float = 0.0


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
        self,
        engine: BlockEngine,
        transports: Transports,
        channels: ChannelPool,
        spawn: Spawn,
        limits: FetchLimits,
        costs: Callable[[], LinearModel | None],
        avoided: Avoided,
    ) -> None:
        self.engine = engine
        self.transports = transports
        self.channels = channels
        self.spawn = spawn
        self.limits = limits
        self.costs = costs
        """Of the engine's steps by now."""
        self.avoided = avoided
        self._slots = asyncio.Semaphore(limits.max_fetches)
        self.bytes_per_s = 0.0
        """Of recent reads; 0 until there was one."""

    @property
    def pull_bytes_per_s(self) -> float:
        """What to expect of reading what a peer has cached; 0: it reads none."""
        return (self.bytes_per_s or UNMEASURED_BYTES_PER_S) if self.limits.pulls else 0.0

    async def fetch(self, order: FetchOrder, report: FetchReport) -> None:
        """Fetch, then end the engine's wait for remote blocks, also when cancelled. `report` tells how it goes."""
        pull = _Pull(self, order, report)
        try:
            async with self._slots:
                await pull.run()
        except (ReadError, PeerError, TimeoutError, grpc.aio.AioRpcError) as error:
            report.failure = reason_of(error)
            if report.failure in _SIGNS_OF_DEATH:
                self.avoided.add(order.address)
            log.warning("fetching %s from %s: %s", order.start.request_id, order.address, explain(error))
        except asyncio.CancelledError:
            report.failure = "cancelled"
            raise
        finally:
            await pull.finish()

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
        self._landing = Landing(fetcher.engine, order.reserved, report, fetcher.measured)
        info, reserved = fetcher.engine.info, order.reserved
        self._patience: Patience | None = None
        if order.start.cached_only:
            # What a peer has cached is worth no more than computing it.
            self._patience = Patience(
                fetcher.costs(),
                block_size=info.block_size,
                first_block=reserved.first_block,
                num_blocks=len(reserved.block_ids),
                unknown_s=fetcher.limits.read_timeout_s,
            )
        self._call: PrefillCall | None = None
        self._span: Span | None = None

    async def run(self) -> None:
        """Read until everything is here, or raise."""
        order, limits = self._order, self._fetcher.limits
        call = PrefillCall(self._fetcher.channels.get(order.address), limits.call_timeout_s, order.traceparent)
        self._call = call
        staging = await call.start(order.start, self._within(limits.read_timeout_s))
        source = Source.of(order.address, staging)
        block_bytes = self._fetcher.engine.memory.block_bytes
        if source.region.block_bytes != block_bytes:
            raise PeerError(f"a block has {source.region.block_bytes} bytes there, {block_bytes} here")
        transport = self._fetcher.transports.choose(source)
        while self._landing.missing_blocks:
            update = await call.update(self._within(limits.prefill_timeout_s))
            if update.WhichOneof("step") != "blocks":
                if order.start.cached_only:
                    return  # it has less than was believed
                raise PeerError("the prefill worker has ended before the last block")
            remote_ids = self._check(update.blocks)
            self._span = self._span or telemetry.start_span("transfer", traceparent=order.traceparent)
            await self._landing.read(transport, source, remote_ids, self._within(limits.read_timeout_s))

    def _within(self, timeout_s: float) -> float:
        """How long to wait for the next thing."""
        if self._patience is None:
            return timeout_s
        now_s = asyncio.get_running_loop().time()
        return max(0.0, min(timeout_s, self._patience.deadline_s(self._report.blocks, now_s) - now_s))

    def _check(self, staged: StagedBlocks) -> Sequence[int]:
        """The ids of the blocks that we want of these, the next ones; each must hold what we would compute."""
        reserved, blocks = self._order.reserved, self._report.blocks
        if staged.cached_tokens > self._report.prefill_cached_tokens:
            self._report.prefill_cached_tokens = staged.cached_tokens
            self._report.onboarded, self._report.onboard_s = staged.onboarded, staged.onboard_s
        skip = reserved.first_block + blocks - staged.first_block
        wanted = reserved.digests[blocks : blocks + max(0, len(staged.block_ids) - skip)]
        offered = staged.digests[skip * DIGEST_BYTES :][: len(wanted) * DIGEST_BYTES]
        if skip < 0 or b"".join(wanted) != offered:
            raise ReadError("mismatch", "the staged blocks are not the ones asked for")
        return list(staged.block_ids)[skip : skip + len(wanted)]

    async def finish(self) -> None:
        """Hand the blocks back to the engine at once, then let the prefill worker free its own."""
        try:
            await self._landing.finish()
        finally:
            count(self._report)
            if self._span is not None:
                report = self._report
                self._span.set_attribute("transport", report.transport)
                self._span.set_attribute("transferred_bytes", report.size_bytes)
                self._span.set_attribute("reading_s", report.reading_s)
                self._span.set_attribute("failure", report.failure)
                self._span.end()
            if self._call is not None:
                self._call.close_soon(self._fetcher.spawn)


def count(report: LandingReport) -> None:
    """Add an ended fetch to the metrics."""
    if report.failure:
        metrics.fetch_failures.labels(report.failure).inc()
    else:
        metrics.fetches.labels(report.transport).inc()
    if report.size_bytes:
        metrics.transferred_bytes.labels(report.transport).inc(report.size_bytes)
        metrics.transfer_s.labels(report.transport).observe(report.reading_s)
