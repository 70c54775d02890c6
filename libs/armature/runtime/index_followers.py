"""The followers of the index, each with a bounded queue of what it has not been sent yet."""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from prometheus_client import Counter, Gauge

from armature.index.packing import HASH_BYTES, pack_hashes
from armature.index.prefix_index import PrefixIndex
from armature.index.trust import Trust
from armature.v1.kv_index_pb2 import IndexUpdate, WorkerChange

_followers = Gauge("armature_kv_index_followers", "Open Follow streams.")
_overflows = Counter("armature_kv_index_overflows_total", "Followers that were too slow and got a new copy.")


class Follower:
    """What one follower is still to be sent. It starts by needing a copy."""

    def __init__(self, most_blocks: int) -> None:
        self._most_blocks = most_blocks
        self._changes: list[WorkerChange] = []
        self._blocks = 0
        self._woken = asyncio.Event()
        self.needs_copy = True

    def begin_copy(self) -> None:
        """From now on every change is queued: a copy made later holds it or is followed by it."""
        self.needs_copy = False
        self._changes.clear()
        self._blocks = 0

    def put(self, changes: Iterable[WorkerChange]) -> None:
        """Queue changes. Too many: they are thrown away, and a copy is needed."""
        if self.needs_copy:
            return
        for change in changes:
            self._changes.append(change)
            self._blocks += 1 + len(change.sequence_hashes) // HASH_BYTES
        if self._blocks > self._most_blocks:
            self.needs_copy = True
            self._changes.clear()
            _overflows.inc()
        self._woken.set()

    async def take(self) -> IndexUpdate | None:
        """Wait for changes and take them all; None: a copy is needed."""
        while not self._changes and not self.needs_copy:
            self._woken.clear()
            await self._woken.wait()
        if self.needs_copy:
            return None
        update = IndexUpdate(changes=_merged(self._changes))
        self._changes.clear()
        self._blocks = 0
        return update


class Followers:
    """All of them; told of every change of the index, after it was made."""

    def __init__(self, most_blocks: int) -> None:
        self._most_blocks = most_blocks
        self._followers: dict[Follower, None] = {}

    def attach(self) -> Follower:
        follower = Follower(self._most_blocks)
        self._followers[follower] = None
        _followers.set(len(self._followers))
        return follower

    def detach(self, follower: Follower) -> None:
        del self._followers[follower]
        _followers.set(len(self._followers))

    def tell(self, changes: Sequence[WorkerChange]) -> None:
        for follower in self._followers:
            follower.put(changes)


def copy_of(index: PrefixIndex, trust: Trust, message_blocks: int) -> Iterator[IndexUpdate]:
    """A full copy in messages of at most `message_blocks` blocks.

    The index may change between two messages: a worker is copied as it is when its turn comes. A change that was made
    before that and is sent again after the copy does no harm, since of all changes to a block the last one decides.
    """
    update, room = IndexUpdate(reset=True), message_blocks
    for worker_id in index.worker_ids:
        state = WorkerChange.Kind.ValueType(trust.state(worker_id))
        update.changes.add(kind=state, worker_id=worker_id)
        if (readers := index.attached.get(worker_id)) is not None:
            update.changes.add(kind=WorkerChange.KIND_ATTACHED, worker_id=worker_id, readers=readers)
        for tier, blocks in index.holdings(worker_id).items():
            start = 0
            while start < len(blocks):
                part = blocks[start : start + room]
                update.changes.add(
                    kind=WorkerChange.KIND_STORED,
                    worker_id=worker_id,
                    tier=tier.value,
                    sequence_hashes=pack_hashes(part),
                )
                start += len(part)
                room -= len(part)
                if not room:
                    yield update
                    update, room = IndexUpdate(), message_blocks
    update.complete = True
    yield update


def _merged(changes: list[WorkerChange]) -> Iterator[WorkerChange]:
    """The same changes, those that are alike and in a row joined into one."""
    for (kind, worker_id, tier), alike in groupby(changes, lambda one: (one.kind, one.worker_id, one.tier)):
        if kind == WorkerChange.KIND_ATTACHED:
            yield list(alike)[-1]
            continue
        hashes = b"".join([change.sequence_hashes for change in alike])
        yield WorkerChange(kind=kind, worker_id=worker_id, tier=tier, sequence_hashes=hashes)
