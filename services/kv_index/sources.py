"""Hears workers and kv-offloads: one stream of KV events each, applied to the index and told to the followers."""

import asyncio
import logging
import time
from array import array
from collections.abc import Callable, Mapping
from math import inf

from prometheus_client import Counter

from armature.index.change import Change, ChangeKind
from armature.index.tiers import Tier
from armature.index.tracker import BatchHeader, Position, SourceTracker, Verdict
from armature.index.trust import TrustState
from armature.runtime.channels import ChannelPool
from armature.runtime.index_changes import change_by, change_of
from armature.runtime.index_snapshots import SnapshotStore
from armature.runtime.member_streams import MemberStreams
from armature.runtime.membership import MemberChange
from armature.runtime.node_readers import NodeReaders
from armature.runtime.placement import OFFLOAD_KIND
from armature.runtime.tasks import Spawn
from armature.v1.common_pb2 import Member
from armature.v1.kv_offload_pb2_grpc import KvOffloadStub
from armature.v1.worker_pb2 import KvEventBatch, KvEventsRequest
from armature.v1.worker_pb2_grpc import WorkerStub
from services.kv_index.book import Book

log = logging.getLogger(__name__)

RESYNC_INTERVAL_S = 30.0
"""A source is taken in anew at most so often: a dump may be large, and one that tells what is not true will again."""

_blocks = Counter("armature_kv_index_event_blocks_total", "Blocks named by workers' events.", ["kind"])
_repairs = Counter("armature_kv_index_repairs_total", "Streams opened anew because events were missing.", ["reason"])
_dumps = Counter("armature_kv_index_dumps_total", "Workers' dumps, and histories from their first event.")


class Sources:
    """Keeps the book equal to what workers and kv-offloads say; where `store` has a snapshot, from there on."""

    def __init__(self, book: Book, channels: ChannelPool, spawn: Spawn, store: SnapshotStore | None = None) -> None:
        self._book = book
        self._channels = channels
        self._store = store
        self._streams = MemberStreams("KV events", channels, spawn, self._read)
        self._trackers: dict[str, SourceTracker] = {}
        self._readers = NodeReaders()
        self._resynced_s: dict[str, float] = {}
        """When sources were last taken in anew; snapshots of them are not believed either."""

    def on_change(self, change: MemberChange) -> None:
        """A member has come or gone; workers that publish no events are only noted as readers of others."""
        if not change.member.worker.lacks_kv_events:
            self._hear(change)
        self._book.enter(self._readers.on_change(change))

    def _hear(self, change: MemberChange) -> None:
        worker_id = change.member.id
        if self._streams.on_change(change):
            # Also of a worker that has moved: its old stream must not meddle with the new one.
            self._trackers[worker_id] = SourceTracker()
            self._book.mark(worker_id, TrustState.STALE)
        elif change.kind == "left":
            self._trackers.pop(worker_id, None)
            self._resynced_s.pop(worker_id, None)
            self._book.drop(worker_id)

    def resync(self, source_id: str) -> bool:
        """Take in anew all that a source holds, from a dump; False: it is unknown, or that was done a moment ago."""
        now_s = time.monotonic()
        if source_id not in self._trackers or now_s < self._resynced_s.get(source_id, -inf) + RESYNC_INTERVAL_S:
            return False
        log.warning("%s is not believed: taking in its blocks anew", source_id)
        _repairs.labels("disbelief").inc()
        self._resynced_s[source_id] = now_s
        self._trackers[source_id] = SourceTracker()
        self._book.mark(source_id, TrustState.REPAIRING)
        self._streams.restart(source_id)
        return True

    async def settled(self, timeout_s: float) -> bool:
        """Wait until every worker known now has been heard whole; False if that takes longer than `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                while not all(tracker.is_exact for tracker in self._trackers.values()):
                    self._book.changed.clear()
                    await self._book.changed.wait()
        except TimeoutError:
            return False
        return True

    def position(self, worker_id: str) -> Position | None:
        """Up to where a worker's entry is true; None while it is not whole."""
        tracker = self._trackers.get(worker_id)
        return tracker.position if tracker and tracker.is_exact else None

    def holdings(self, worker_id: str) -> "Mapping[Tier, array[int]]":
        return self._book.index.holdings(worker_id)

    async def _read(self, member: Member, has_read: Callable[[], None]) -> None:
        tracker, state = self._trackers[member.id], TrustState.STALE
        is_new = tracker.position == Position() and member.id not in self._resynced_s
        if is_new and self._store is not None:
            tracker = await self._restore(self._store, member, tracker)
        position, channel = tracker.position, self._channels.get(member.address)
        stub = KvOffloadStub(channel) if member.kind == OFFLOAD_KIND else WorkerStub(channel)
        call = stub.KvEvents(KvEventsRequest(epoch=position.epoch, next_seq=position.next_seq))
        try:
            while isinstance(batch := await call.read(), KvEventBatch):
                if not self._take(member.id, tracker, batch):
                    state = TrustState.REPAIRING
                    return
                has_read()
        finally:
            call.cancel()
            tracker.disconnected()
            # Not if the worker has left or moved meanwhile.
            if self._trackers.get(member.id) is tracker:
                self._book.mark(member.id, state)

    async def _restore(self, store: SnapshotStore, member: Member, tracker: SourceTracker) -> SourceTracker:
        """Enter what was last kept of a worker, and follow it from there; without that, follow it from nothing."""
        restored = await store.load(member.id, member.epoch)
        if restored is None or self._trackers.get(member.id) is not tracker:
            return tracker
        self._trackers[member.id] = tracker = SourceTracker(restored.position)
        self._book.enter([Change(ChangeKind.CLEARED, member.id)])
        for tier, hashes in restored.blocks:
            self._book.enter([Change(ChangeKind.STORED, member.id, tier, hashes)])
            await asyncio.sleep(0)  # a large pool is many parts, and others wait
        return tracker

    def _take(self, worker_id: str, tracker: SourceTracker, batch: KvEventBatch) -> bool:
        """Apply a message; False if it does not fit and the stream must be opened anew."""
        # All is read before any is applied: a message that makes no sense changes nothing.
        told = [change_by(worker_id, event) for event in batch.events]
        changes = [change_of(change) for change in told]
        step = tracker.receive(BatchHeader(batch.epoch, batch.first_seq, len(told), batch.reset, batch.more))
        if step.verdict is Verdict.RESYNC:
            _repairs.labels(step.reason).inc()
            log.warning("events of %s are missing (%s)", worker_id, step.reason)
            return False
        if step.verdict is Verdict.REPLACE:
            _dumps.inc()
            self._book.enter([Change(ChangeKind.CLEARED, worker_id)])
        news = changes[step.first_event :]
        self._book.enter(news, told[step.first_event :])
        for change in news:
            _blocks.labels(change.kind.name.lower()).inc(len(change.hashes))
        self._book.mark(worker_id, TrustState.EXACT if tracker.is_exact else TrustState.REPAIRING)
        return True
