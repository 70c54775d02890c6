"""Blocks that a worker wants back: brought up to host memory, announced as they come, kept while it reads them."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from itertools import takewhile

from armature.index.tiers import Tier
from armature.kv_store import metrics
from armature.kv_store.node_store import NodeStore
from armature.offload.copies import Place
from armature.offload.readers import Lease
from armature.runtime.errors import NotFoundError
from armature.transfer.transports import describe_staging
from armature.v1 import kv_offload_pb2 as pb
from armature.v1.common_pb2 import Tier as WireTier

_HOUR_S = 3600.0
"""A lease ends with its stream. This is for the core, which knows no streams."""

_WISHES = 2
"""How often a block is wished for again that could have come and did not, for lack of room at that moment."""


class Onboardings:
    """All streams of one store."""

    def __init__(self, store: NodeStore) -> None:
        self._store = store
        self._ready: dict[str, set[int]] = {}

    async def run(self, digests: Sequence[bytes], tenant: str) -> AsyncIterator[pb.OnboardUpdate]:
        """What the contract says of `Onboard`."""
        store, name = self._store, f"o-{uuid.uuid4().hex}"
        lease = store.tiers.readers.lease(digests, time.monotonic(), _HOUR_S)
        metrics.missed_blocks.inc(len(digests) - len(lease.places))
        self._ready[name] = set()
        try:
            with store.transports.attending():
                store.mover.wake()
                start = self._start(name, lease)
                yield pb.OnboardUpdate(start=start)
                told = len(start.block_ids)
                async for update in self._announce(name, digests[: len(lease.places)], lease, tenant, told):
                    yield update
                if lease.lease_id:
                    await asyncio.sleep(store.settings.lease_s)
                    metrics.leases_expired.inc()
        finally:
            del self._ready[name]
            store.tiers.readers.release(lease.lease_id)
            store.mover.wake()

    def may_read(self, staging_id: str, block_ids: Sequence[int]) -> Sequence[int]:
        """`block_ids` if all of them were announced under this id.

        Raises:
            NotFoundError: they were not, or the stream has ended.
        """
        if not self._ready.get(staging_id, set()).issuperset(block_ids):
            raise NotFoundError("these blocks are not, or no longer, announced under this id")
        return block_ids

    async def _announce(
        self, name: str, digests: Sequence[bytes], lease: Lease, tenant: str, told: int
    ) -> AsyncIterator[pb.OnboardUpdate]:
        """All but the first blocks, which the caller has been told of."""
        store, wishes, came_from = self._store, 0, [place.tier for place in lease.places]
        started_s = time.monotonic()
        while True:
            places = store.tiers.readers.update(lease.lease_id).places if told < len(digests) else ()
            block_ids = _ready(places[told:])
            if block_ids:
                self._tell(name, block_ids, came_from[told:])
                yield pb.OnboardUpdate(ready=pb.ReadyBlocks(first_block=told, block_ids=block_ids))
                told, wishes = told + len(block_ids), 0
                continue  # others may have come while the caller took these
            if told == len(digests):
                reason = pb.OnboardDone.REASON_COMPLETE
            elif told >= len(places):
                reason = pb.OnboardDone.REASON_LOST
            elif not store.tiers.is_coming(digests[told]):
                if not store.tiers.top.can_take(tenant):
                    reason = pb.OnboardDone.REASON_CROWDED
                elif wishes < _WISHES:
                    wishes += 1
                    store.tiers.readers.hurry(lease.lease_id)
                    store.mover.wake()
                    await store.news.wait()
                    continue
                else:
                    reason = pb.OnboardDone.REASON_LOST
            else:
                await store.news.wait()
                continue
            break
        metrics.onboards.labels(pb.OnboardDone.Reason.Name(reason).removeprefix("REASON_").lower()).inc()
        if digests:
            slowest = max(came_from).name.lower()
            metrics.seconds.labels("onboard", slowest).observe(time.monotonic() - started_s)
        store.tiers.onboarded(digests[:told])
        yield pb.OnboardUpdate(done=pb.OnboardDone(reason=reason))

    def _start(self, name: str, lease: Lease) -> pb.OnboardStart:
        store, tiers, block_ids = self._store, [place.tier for place in lease.places], _ready(lease.places)
        self._tell(name, block_ids, tiers)
        source = describe_staging(store.pool, store.transports, name, store.settings.lease_s)
        return pb.OnboardStart(source=source, tiers=map(WireTier.ValueType, tiers), block_ids=block_ids)

    def _tell(self, name: str, block_ids: Sequence[int], came_from: Sequence[Tier]) -> None:
        """The caller may read these from now on."""
        self._ready[name].update(block_ids)
        self._store.count_hits(came_from[: len(block_ids)])


def _ready(places: Sequence[Place]) -> list[int]:
    """Where the first blocks lie in the pool, up to the first that is not there."""
    return [place.slot for place in takewhile(lambda place: place.tier is Tier.G2, places)]
