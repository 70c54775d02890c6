"""Workers whose engines publish no KV events: what they hold is assumed from what routers say they sent there."""

import asyncio
import time
from array import array
from collections.abc import Mapping

from prometheus_client import Counter

from armature.index.approximate import ApproximateHoldings
from armature.index.tiers import Tier
from armature.index.tracker import Position
from armature.index.trust import TrustState
from armature.runtime.index_snapshots import SnapshotStore
from armature.runtime.membership import MemberChange
from armature.runtime.tasks import Spawn
from armature.v1.common_pb2 import Member
from services.kv_index.book import Book

_EXPIRE_INTERVAL_S = 1.0

_assumed = Counter("armature_kv_index_assumed_prompts_total", "Prompts that routers sent to workers without events.")


class SilentWorkers:
    """Their holdings go to the followers like everybody's, so that all routers assume the same."""

    def __init__(self, book: Book, ttl_s: float, store: SnapshotStore | None, spawn: Spawn) -> None:
        self._book = book
        self._store = store
        self._spawn = spawn
        self._holdings = ApproximateHoldings(ttl_s)
        self._epochs: dict[str, int] = {}
        self._versions: dict[str, int] = {}

    def on_change(self, change: MemberChange) -> None:
        """A worker has come, changed or gone; those that publish events are ignored."""
        member = change.member
        if change.kind == "left":
            if self._epochs.pop(member.id, None) is not None:
                self._holdings.remove_worker(member.id)
                self._book.drop(member.id)
        elif member.worker.lacks_kv_events:
            is_new = member.id not in self._epochs
            self._epochs[member.id] = member.epoch
            self._holdings.put_worker(member.id, member.worker.num_blocks)
            self._book.mark(member.id, TrustState.ASSUMED)
            if is_new and self._store is not None:
                self._spawn(self._restore(self._store, member))

    def assume(self, worker_id: str, hashes: tuple[int, ...]) -> None:
        """A router has sent a prompt to a worker; unknown ones are ignored."""
        if worker_id in self._epochs:
            _assumed.inc()
            self._versions[worker_id] = self._versions.get(worker_id, 0) + 1
            self._book.enter(self._holdings.note(worker_id, hashes, time.monotonic()))

    def position(self, worker_id: str) -> Position | None:
        """Grows with every prompt, as there are no events to count."""
        epoch = self._epochs.get(worker_id)
        return None if epoch is None else Position(epoch, self._versions.get(worker_id, 0))

    def holdings(self, worker_id: str) -> "Mapping[Tier, array[int]]":
        """What was asked for last comes first."""
        return {Tier.G1: array("Q", self._holdings.held(worker_id))}

    async def run(self) -> None:
        """Let assumptions expire until cancelled."""
        while True:
            await asyncio.sleep(_EXPIRE_INTERVAL_S)
            self._book.enter(self._holdings.expire(time.monotonic()))

    async def _restore(self, store: SnapshotStore, member: Member) -> None:
        """Their time to live begins anew: how old they were is not kept."""
        restored = await store.load(member.id, member.epoch)
        if restored is not None and self._epochs.get(member.id) == member.epoch:
            self._versions[member.id] = restored.position.next_seq
            for _, hashes in reversed(restored.blocks):
                self._book.enter(self._holdings.note(member.id, hashes, time.monotonic()))
