"""Reads blocks of prompts from a kv-offload, into room that the scheduler has reserved for them.

The scheduler has decided that reading from the own node is quicker, the router that it is from another; here it is
done, and given up as soon as computing would be. Requests that are read for wait, all others are computed meanwhile.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import grpc

from armature.engines.engine import BlockEngine
from armature.engines.host import metrics
from armature.engines.host.avoided import Avoided
from armature.engines.host.landing import Landing, LandingReport, explain, reason_of
from armature.index.tiers import Tier
from armature.performance.linear import LinearModel
from armature.runtime.channels import ChannelPool
from armature.runtime.errors import PeerError
from armature.runtime.tasks import Spawn
from armature.scheduling.patience import Patience
from armature.scheduling.request import Reserved
from armature.transfer.region import ReadError
from armature.transfer.source import Source
from armature.transfer.transports import Transports
from armature.v1.common_pb2 import KvLayout, ServingInfo
from armature.v1.common_pb2 import Tier as WireTier
from armature.v1.kv_offload_pb2 import OnboardDone, OnboardRequest, OnboardUpdate, ReadyBlocks
from armature.v1.kv_offload_pb2_grpc import KvOffloadStub
from armature.v1.worker_pb2 import StagedBlocks

log = logging.getLogger(__name__)

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

    asked_blocks: int = 0
    """Of a kv-offload that has answered."""
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
        if isinstance(info, ServingInfo):
            info.onboard_asked_tokens = self.asked_blocks * block_size
            info.onboard_found_tokens = len(self.tiers) * block_size


class Keeper(NamedTuple):
    """A kv-offload to read from, and who learns how that goes."""

    name: str
    address: str
    read: Callable[[int, float], None]
    """Of the bytes and seconds of every read."""
    answered: Callable[[float], None]
    """Of the seconds until blocks were promised."""
    ended: Callable[[OnboardReport], None]
    """Of everything, once it is over."""
    is_asked_for_all: bool = False
    """Whether it is asked for the whole prompt: that it has only the beginning is no failure then."""


@dataclass(slots=True, eq=False)
class _Onboarding:
    reserved: Reserved
    keeper: Keeper
    report: OnboardReport = field(default_factory=OnboardReport)
    task: asyncio.Task[None] | None = None
    is_cancelled: bool = False


class Onboarder:
    """Onboards for one engine; as many prompts at a time as the scheduler reserves room for."""

    def __init__(
        self, engine: BlockEngine, transports: Transports, channels: ChannelPool, spawn: Spawn, avoided: Avoided
    ) -> None:
        self._engine = engine
        self._transports = transports
        self._channels = channels
        self._spawn = spawn
        self._avoided = avoided
        self._all: dict[str, _Onboarding] = {}

    def __len__(self) -> int:
        return len(self._all)

    def begin(self, reserved: Reserved, keeper: Keeper | None, costs: LinearModel | None) -> OnboardReport:
        """Read what was reserved for; the report that comes back is complete by the request's first token.

        There may be no `keeper`: the node's kv-offload has gone after it was told what it has.
        """
        if keeper is None or keeper.address in self._avoided:
            report = OnboardReport(failure="away" if keeper is None else "avoided")
            metrics.onboard_failures.labels(report.failure).inc()
            self._engine.finish_remote(reserved.request_id, 0)
            return report
        onboarding = self._all[reserved.request_id] = _Onboarding(reserved, keeper)
        self._spawn(self._run(onboarding, costs))
        return onboarding.report

    def cancel(self, request_id: str) -> None:
        """Read no further for a request, if anything is read for it."""
        onboarding = self._all.get(request_id)
        if onboarding is not None:
            onboarding.is_cancelled = True
            # A task that is cancelled before it has begun would never come to its `finally`.
            if onboarding.task is not None:
                onboarding.task.cancel()

    async def _run(self, onboarding: _Onboarding, costs: LinearModel | None) -> None:
        reserved, keeper, report = onboarding.reserved, onboarding.keeper, onboarding.report
        landing = Landing(self._engine, reserved, report, keeper.read)
        onboarding.task = asyncio.current_task()
        began_s = _now_s()
        try:
            if not onboarding.is_cancelled:
                await self._read(landing, onboarding, self._patience(reserved, costs))
        except (ReadError, PeerError, TimeoutError, grpc.aio.AioRpcError) as error:
            report.failure = reason_of(error)
            if not report.asked_blocks:  # it has not even answered
                self._avoided.add(keeper.address)
            log.info("onboarding %d blocks from %s: %s", len(reserved.block_ids), keeper.name, explain(error))
        except asyncio.CancelledError:
            report.failure = "cancelled"
            if not onboarding.is_cancelled:
                raise
        finally:
            report.seconds = _now_s() - began_s
            del self._all[reserved.request_id]
            keeper.ended(report)
            await landing.finish()

    def _patience(self, reserved: Reserved, costs: LinearModel | None) -> Patience:
        return Patience(
            costs,
            block_size=self._engine.info.block_size,
            first_block=reserved.first_block,
            num_blocks=len(reserved.block_ids),
            unknown_s=UNKNOWN_S,
        )

    async def _read(self, landing: Landing, onboarding: _Onboarding, patience: Patience) -> None:
        reserved, keeper, report = onboarding.reserved, onboarding.keeper, onboarding.report
        digests = b"".join(reserved.digests)
        request = OnboardRequest(layout=layout_of(self._engine), digests=digests, tenant=reserved.tenant)
        stub: Any = KvOffloadStub(self._channels.get(keeper.address))
        call = stub.Onboard(request, timeout=CALL_TIMEOUT_S)
        try:
            began_s = _now_s()
            deadline_s = patience.deadline_s(0, began_s)
            start = await _next(call, deadline_s)
            if start.WhichOneof("step") != "start":
                raise PeerError("kv-offload did not begin with where the blocks are")
            keeper.answered(_now_s() - began_s)
            source = Source.of(keeper.address, start.start.source)
            report.asked_blocks = len(reserved.block_ids)
            report.tiers = [Tier(tier) for tier in start.start.tiers]
            patience.promised(len(report.tiers))
            deadline_s = patience.deadline_s(0, _now_s())
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
                    if not (keeper.is_asked_for_all and _has_given_all(update, report)):
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


def _has_given_all(update: OnboardUpdate, report: OnboardReport) -> bool:
    return update.done.reason == OnboardDone.REASON_COMPLETE and report.blocks > 0


def layout_of(engine: BlockEngine) -> KvLayout:
    """What tells blocks of this engine from foreign ones."""
    return KvLayout(kv_fingerprint=engine.info.kv_fingerprint, block_bytes=engine.info.block_bytes)


def _now_s() -> float:
    return asyncio.get_running_loop().time()
