"""Reads blocks of prompts back from the node's kv-offload, into room that the scheduler has reserved for them.

The scheduler has decided that reading is quicker; here it is done, and given up as soon as computing would be. Requests
that are read for wait, all others are computed meanwhile.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from armature.engines.engine import Engine
from armature.engines.host import metrics
from armature.engines.host.landing import Landing, LandingReport, explain, reason_of
from armature.engines.host.tiers.node_tiers import NodeTiers
from armature.index.tiers import Tier
from armature.performance.linear import LinearModel
from armature.runtime.errors import PeerError
from armature.runtime.tasks import Spawn
from armature.scheduling.patience import Patience
from armature.scheduling.request import Reserved
from armature.transfer.region import ReadError
from armature.transfer.source import Source
from armature.transfer.transports import Transports
from armature.v1.common_pb2 import Member, ServingInfo
from armature.v1.common_pb2 import Tier as WireTier
from armature.v1.kv_offload_pb2 import OnboardDone, OnboardRequest, OnboardUpdate, ReadyBlocks
from armature.v1.worker_pb2 import StagedBlocks

log = logging.getLogger(__name__)

AVOID_S = 5.0
"""So long nobody waits for a kv-offload that has not answered in time."""
UNKNOWN_S = 2.0
"""How long to wait for blocks while nobody knows what computing them takes."""
CALL_TIMEOUT_S = 60.0
"""Of a whole prompt; patience ends long before."""
_ENDS = {
    OnboardDone.REASON_LOST: "lost",
    OnboardDone.REASON_CROWDED: "crowded",
    OnboardDone.REASON_COMPLETE: "gone",
}


@dataclass(slots=True)
class OnboardReport(LandingReport):
    """How it went."""

    tiers: Sequence[Tier] = ()
    """Of the blocks that were found."""
    seconds: float = 0.0

    def tokens_by_tier(self, block_size: int) -> dict[Tier, int]:
        """Tokens that were onboarded, by where they came from."""
        counts = Counter(self.tiers[: self.blocks])
        return {tier: counts[tier] * block_size for tier in sorted(counts)}

    def describe(self, info: ServingInfo | StagedBlocks, block_size: int) -> None:
        """Tell how a request was served."""
        for tier, tokens in self.tokens_by_tier(block_size).items():
            info.onboarded.add(tier=WireTier.ValueType(tier), tokens=tokens)
        info.onboard_s = self.seconds


@dataclass(slots=True, eq=False)
class _Onboarding:
    reserved: Reserved
    report: OnboardReport = field(default_factory=OnboardReport)
    task: asyncio.Task[None] | None = None
    is_cancelled: bool = False


class Onboarder:
    """Onboards for one engine; as many prompts at a time as the scheduler reserves room for."""

    def __init__(self, engine: Engine, transports: Transports, node: NodeTiers, spawn: Spawn) -> None:
        self._engine = engine
        self._transports = transports
        self._node = node
        self._spawn = spawn
        self._all: dict[str, _Onboarding] = {}
        self._avoid_until_s = 0.0

    def __len__(self) -> int:
        return len(self._all)

    def begin(self, reserved: Reserved, costs: LinearModel | None) -> OnboardReport:
        """Read what was reserved for; the report that comes back is complete by the request's first token."""
        onboarding = _Onboarding(reserved)
        member = self._node.member
        if member is None or _now_s() < self._avoid_until_s:
            onboarding.report.failure = "away" if member is None else "avoided"
            metrics.onboard_failures.labels(onboarding.report.failure).inc()
            self._engine.finish_remote(reserved.request_id, 0)
        else:
            self._all[reserved.request_id] = onboarding
            self._spawn(self._run(onboarding, member, costs))
        return onboarding.report

    def cancel(self, request_id: str) -> None:
        """Read no further for a request, if anything is read for it."""
        onboarding = self._all.get(request_id)
        if onboarding is not None:
            onboarding.is_cancelled = True
            # A task that is cancelled before it has begun would never come to its `finally`.
            if onboarding.task is not None:
                onboarding.task.cancel()

    async def _run(self, onboarding: _Onboarding, member: Member, costs: LinearModel | None) -> None:
        reserved, report = onboarding.reserved, onboarding.report
        landing = Landing(self._engine, reserved, report, self._node.read)
        onboarding.task = asyncio.current_task()
        began_s = _now_s()
        try:
            if not onboarding.is_cancelled:
                await self._read(landing, onboarding, member, self._patience(reserved, costs))
        except (ReadError, PeerError, TimeoutError, grpc.aio.AioRpcError) as error:
            report.failure = reason_of(error)
            if not report.tiers:  # it has not even answered
                self._avoid_until_s = _now_s() + AVOID_S
            log.info("onboarding %d blocks from %s: %s", len(reserved.block_ids), member.id, explain(error))
        except asyncio.CancelledError:
            report.failure = "cancelled"
            if not onboarding.is_cancelled:
                raise
        finally:
            report.seconds = _now_s() - began_s
            del self._all[reserved.request_id]
            _count(report, self._engine.info.block_size, self._engine.info.block_bytes)
            await landing.finish()

    def _patience(self, reserved: Reserved, costs: LinearModel | None) -> Patience:
        return Patience(
            costs,
            block_size=self._engine.info.block_size,
            first_block=reserved.first_block,
            num_blocks=len(reserved.block_ids),
            unknown_s=UNKNOWN_S,
        )

    async def _read(self, landing: Landing, onboarding: _Onboarding, member: Member, patience: Patience) -> None:
        reserved, report = onboarding.reserved, onboarding.report
        digests = b"".join(reserved.digests)
        request = OnboardRequest(layout=self._node.layout, digests=digests, tenant=reserved.tenant)
        call: Any = self._node.stub(member).Onboard(request, timeout=CALL_TIMEOUT_S)
        try:
            began_s = _now_s()
            deadline_s = patience.deadline_s(0, began_s)
            start = await _next(call, deadline_s)
            if start.WhichOneof("step") != "start":
                raise PeerError("kv-offload did not begin with where the blocks are")
            self._node.answered(_now_s() - began_s)
            source = Source.of(member.address, start.start.source)
            report.tiers = [Tier(tier) for tier in start.start.tiers]
            transport = self._transports.choose(source)
            ready = ReadyBlocks(block_ids=start.start.block_ids)
            while landing.missing_blocks:
                if ready.block_ids:
                    if ready.first_block != report.blocks:
                        raise PeerError(f"block {ready.first_block} is ready where {report.blocks} was expected")
                    remote_ids = list(ready.block_ids)[: landing.missing_blocks]
                    await landing.read(transport, source, remote_ids, max(deadline_s - _now_s(), 0.0))
                    deadline_s = patience.deadline_s(report.blocks, _now_s())
                    if not landing.missing_blocks:
                        return
                update = await _next(call, deadline_s)
                if update.WhichOneof("step") != "ready":
                    report.failure = _ENDS.get(update.done.reason, "protocol")
                    return
                ready = update.ready
        finally:
            call.cancel()  # the lease ends with the call


async def _next(call: Any, deadline_s: float) -> OnboardUpdate:
    async with asyncio.timeout_at(deadline_s):
        message = await call.read()
    if not isinstance(message, OnboardUpdate):
        raise PeerError("kv-offload has ended the call too early")
    return message


def _count(report: OnboardReport, block_size: int, block_bytes: int) -> None:
    if report.failure:
        metrics.onboard_failures.labels(report.failure).inc()
    for tier, tokens in report.tokens_by_tier(block_size).items():
        name = tier.name.lower()
        metrics.onboarded_tokens.labels(name).inc(tokens)
        metrics.onboarded_blocks.labels(name).inc(tokens // block_size)
        metrics.onboarded_bytes.labels(name).inc(tokens // block_size * block_bytes)
    if report.blocks:
        metrics.onboard_s.observe(report.seconds)


def _now_s() -> float:
    return asyncio.get_running_loop().time()
