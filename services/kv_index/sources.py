"""Hears the workers: one stream of KV events each, applied to the index and told to the followers."""

import asyncio
import logging
from collections.abc import Callable

import grpc
from prometheus_client import Counter

from armature.index.prefix_index import PrefixIndex
from armature.index.tracker import BatchHeader, SourceTracker, Verdict
from armature.runtime.channels import ChannelPool
from armature.runtime.index_changes import change_by, change_of
from armature.runtime.member_streams import MemberStreams
from armature.runtime.membership import MemberChange
from armature.runtime.tasks import Spawn
from armature.v1.common_pb2 import Member
from armature.v1.kv_index_pb2 import WorkerChange
from armature.v1.worker_pb2 import KvEventBatch, KvEventsRequest
from armature.v1.worker_pb2_grpc import WorkerStub
from services.kv_index.followers import Followers

log = logging.getLogger(__name__)

_blocks = Counter("armature_kv_index_event_blocks_total", "Blocks named by workers' events.", ["kind"])
_repairs = Counter("armature_kv_index_repairs_total", "Streams opened anew because events were missing.", ["reason"])
_dumps = Counter("armature_kv_index_dumps_total", "Workers' dumps, and histories from their first event.")


class Sources:
    """Keeps the index equal to what the workers of the membership say."""

    def __init__(
        self,
        index: PrefixIndex,
        followers: Followers,
        channels: ChannelPool,
        spawn: Spawn,
    ) -> None:
        self._index = index
        self._followers = followers
        self._streams = MemberStreams("KV events", channels, spawn, self._read)
        self._trackers: dict[str, SourceTracker] = {}
        self._changed = asyncio.Event()

    def on_change(self, change: MemberChange) -> None:
        """A worker has come or gone."""
        worker_id = change.member.id
        if self._streams.on_change(change):
            # Also of a worker that has moved: its old stream must not meddle with the new one.
            self._trackers[worker_id] = SourceTracker()
            self._tell([self._trust(worker_id, exact=False)])
        elif change.kind == "left":
            self._trackers.pop(worker_id, None)
            self._index.drop(worker_id)
            self._tell([WorkerChange(kind=WorkerChange.KIND_DROPPED, worker_id=worker_id)])

    async def settled(self, timeout_s: float) -> bool:
        """Wait until every worker known now has been heard whole; False if that takes longer than `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                while not all(tracker.is_exact for tracker in self._trackers.values()):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    async def _read(self, member: Member, channel: grpc.aio.Channel, has_read: Callable[[], None]) -> None:
        tracker = self._trackers[member.id]
        position = tracker.position
        call = WorkerStub(channel).KvEvents(KvEventsRequest(epoch=position.epoch, next_seq=position.next_seq))
        try:
            while isinstance(batch := await call.read(), KvEventBatch):
                if not self._take(member.id, tracker, batch):
                    return
                has_read()
        finally:
            call.cancel()
            tracker.disconnected()
            # Not if the worker has left or moved meanwhile.
            if self._trackers.get(member.id) is tracker and not self._index.is_stale(member.id):
                self._tell([self._trust(member.id, exact=False)])

    def _take(self, worker_id: str, tracker: SourceTracker, batch: KvEventBatch) -> bool:
        """Apply a message; False if it does not fit and the stream must be opened anew."""
        # All is read before any is applied: a message that makes no sense changes nothing.
        told = [change_by(worker_id, event) for event in batch.events]
        changes = [change_of(change) for change in told]
        header = BatchHeader(batch.epoch, batch.first_seq, len(told), batch.reset, batch.more)
        was_exact, step = tracker.is_exact, tracker.receive(header)
        if step.verdict is Verdict.RESYNC:
            _repairs.labels(step.reason).inc()
            log.warning("events of %s are missing (%s)", worker_id, step.reason)
            return False
        news = told[step.first_event :]
        if step.verdict is Verdict.REPLACE:
            _dumps.inc()
            self._index.clear(worker_id)
            news.insert(0, WorkerChange(kind=WorkerChange.KIND_CLEARED, worker_id=worker_id))
        for change in changes[step.first_event :]:
            self._index.apply(change)
            _blocks.labels(change.kind.name.lower()).inc(len(change.hashes))
        if tracker.is_exact is not was_exact:
            news.append(self._trust(worker_id, exact=tracker.is_exact))
        self._tell(news)
        return True

    def _trust(self, worker_id: str, *, exact: bool) -> WorkerChange:
        self._index.mark(worker_id, stale=not exact)
        kind = WorkerChange.KIND_EXACT if exact else WorkerChange.KIND_STALE
        return WorkerChange(kind=kind, worker_id=worker_id)

    def _tell(self, changes: list[WorkerChange]) -> None:
        self._followers.tell(changes)
        self._changed.set()
