"""The kv-offload of a worker's node: where it is, what it holds and how quick it is, as far as this worker knows.

While there is none, or its events are not heard, nothing is below: prompts are computed, and blocks are not offered.
"""

import logging
from collections.abc import Callable
from typing import Any

from armature.blocks.events import KvEventKind
from armature.engines.engine import BlockEngine
from armature.engines.host import metrics
from armature.engines.host.tiers.onboarder import Keeper, OnboardReport, layout_of
from armature.engines.host.tiers.speeds import TierSpeeds
from armature.index.tiers import Tier
from armature.index.tracker import BatchHeader, SourceTracker, Verdict
from armature.runtime.channels import ChannelPool
from armature.runtime.errors import PeerError
from armature.runtime.member_streams import MemberStreams
from armature.runtime.membership import MemberChange
from armature.runtime.tasks import Spawn
from armature.scheduling.lower_tiers import TierChange, TierSpeed
from armature.v1.common_pb2 import Member
from armature.v1.kv_offload_pb2_grpc import KvOffloadStub
from armature.v1.worker_pb2 import KvEvent, KvEventBatch, KvEventsRequest

log = logging.getLogger(__name__)

_KINDS = {
    KvEvent.KIND_STORED: KvEventKind.STORED,
    KvEvent.KIND_REMOVED: KvEventKind.REMOVED,
    KvEvent.KIND_CLEARED: KvEventKind.CLEARED,
}


class NodeTiers:
    """Follows the kv-offload of `node` that keeps blocks like the engine's. Is told of every change among such."""

    def __init__(self, engine: BlockEngine, node: str, channels: ChannelPool, spawn: Spawn) -> None:
        self._engine = engine
        self._node = node
        self._channels = channels
        self.layout = layout_of(engine)
        self._streams = MemberStreams("KV events", channels, spawn, self._read)
        self._speeds = TierSpeeds()
        self._heard: Member | None = None

    @property
    def member(self) -> Member | None:
        """Whom to ask; None: nobody."""
        return self._heard

    @property
    def keeper(self) -> Keeper | None:
        """From whom to onboard; None: nobody."""
        member = self._heard
        if member is None:
            return None
        return Keeper(member.id, member.address, self._read_so_much, self._speeds.answered, self._count)

    @property
    def speeds(self) -> dict[Tier, TierSpeed]:
        """How quickly blocks come from each tier to the device; those that are not known yet are absent."""
        return self._speeds.to_device

    def stub(self, member: Member) -> Any:
        return KvOffloadStub(self._channels.get(member.address))

    def on_change(self, change: MemberChange) -> None:
        """A kv-offload has come, changed or gone."""
        member = change.member
        if change.kind == "left" or (member.node == self._node and member.offload.layout == self.layout):
            self._streams.on_change(change)
        if change.kind == "left" and self._heard is not None and self._heard.id == member.id:
            self._lose()

    def lifts(self, speeds: dict[Tier, TierSpeed]) -> None:
        """It has told how quickly blocks come up to host memory."""
        self._speeds.lifts = speeds
        self._tell_speeds()

    def _read_so_much(self, size_bytes: int, seconds: float) -> None:
        self._speeds.read(size_bytes, seconds)
        self._tell_speeds()

    def _count(self, report: OnboardReport) -> None:
        info = self._engine.info
        if report.failure:
            metrics.onboard_failures.labels(report.failure).inc()
        for tier, tokens in report.tokens_by_tier(info.block_size).items():
            name, blocks = tier.name.lower(), tokens // info.block_size
            metrics.onboarded_tokens.labels(name).inc(tokens)
            metrics.onboarded_blocks.labels(name).inc(blocks)
            metrics.onboarded_bytes.labels(name).inc(blocks * info.block_bytes)
        if report.blocks:
            metrics.onboard_s.observe(report.seconds)

    def _tell_speeds(self) -> None:
        for tier, speed in self._speeds.to_device.items():
            self._engine.tell_speed(tier, speed)

    async def _read(self, member: Member, has_read: Callable[[], None]) -> None:
        tracker = SourceTracker()
        call = self.stub(member).KvEvents(KvEventsRequest())
        try:
            while isinstance(batch := await call.read(), KvEventBatch):
                if not self._take(tracker, batch):
                    raise PeerError("events are missing")
                if self._heard is None and tracker.is_exact:
                    self._heard = member
                    log.info("%s keeps blocks for this worker", member.id)
                has_read()
        finally:
            call.cancel()
            if self._heard is not None and self._heard.id == member.id:
                self._lose()

    def _take(self, tracker: SourceTracker, batch: KvEventBatch) -> bool:
        try:
            changes = [
                TierChange(_KINDS[event.kind], Tier(event.tier) if event.tier else None, event.sequence_hashes)
                for event in batch.events
            ]
        except (KeyError, ValueError) as error:
            raise PeerError(f"an event makes no sense: {error}") from error
        step = tracker.receive(BatchHeader(batch.epoch, batch.first_seq, len(changes), batch.reset, batch.more))
        if step.verdict is Verdict.RESYNC:
            return False
        if step.verdict is Verdict.REPLACE:
            changes.insert(0, TierChange(KvEventKind.CLEARED, None))
        if changes:
            self._engine.tell_below(changes[step.first_event :])
        return True

    def _lose(self) -> None:
        assert self._heard is not None
        log.warning("%s is not heard any more: prompts are computed until it is back", self._heard.id)
        metrics.offload_losses.inc()
        self._heard = None
        self._engine.tell_below([TierChange(KvEventKind.CLEARED, None)])
