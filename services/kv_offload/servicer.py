"""Serves `armature.v1.KvOffload` and `armature.v1.Blocks`."""

import time
from collections.abc import AsyncIterator
from typing import Any

from armature.blocks.hashing import DIGEST_BYTES
from armature.engines.kv_event_stream import event_batches
from armature.index.tiers import Tier
from armature.kv_store import metrics
from armature.kv_store.node_store import NodeStore, Offer
from armature.kv_store.onboarding import Onboardings
from armature.offload.ledger import Facts
from armature.offload.store import Answer
from armature.runtime.errors import CallerError, UnavailableError
from armature.transfer.grpc_transport import read_in_chunks
from armature.transfer.source import Source
from armature.v1 import kv_offload_pb2 as pb
from armature.v1 import kv_offload_pb2_grpc, worker_pb2_grpc
from armature.v1.common_pb2 import TIER_UNSPECIFIED, KvLayout
from armature.v1.common_pb2 import Tier as WireTier
from armature.v1.worker_pb2 import BlockData, KvEventBatch, KvEventsRequest, ReadBlocksRequest, TierSpeed

_OUTCOMES = {
    Answer.PLACED: pb.OffloadResponse.OUTCOME_TAKEN,
    Answer.PRESENT: pb.OffloadResponse.OUTCOME_PRESENT,
    Answer.REFUSED: pb.OffloadResponse.OUTCOME_REFUSED,
    Answer.CROWDED: pb.OffloadResponse.OUTCOME_CROWDED,
    None: pb.OffloadResponse.OUTCOME_FAILED,
}


class Opened:
    """The store, once a worker has told what its blocks are like."""

    def __init__(self, store: NodeStore, layout: KvLayout) -> None:
        self.store = store
        self.layout = layout
        self.onboardings = Onboardings(store)

    def check(self, layout: KvLayout) -> None:
        """Refuse foreign blocks.

        Raises:
            CallerError: the layouts differ.
        """
        if layout != self.layout:
            raise CallerError("layout differs: this kv-offload keeps blocks of another model, dtype or block size")


class KvOffloadServicer(kv_offload_pb2_grpc.KvOffloadServicer, worker_pb2_grpc.BlocksServicer):
    """Decodes, calls the store, encodes. `opened` is set when the store is open."""

    def __init__(self, epoch: int) -> None:
        self._epoch = epoch
        self.opened: Opened | None = None

    def _opened(self) -> Opened:
        if self.opened is None:
            raise UnavailableError("no worker of this node has been seen yet", retry_after_s=1.0)
        return self.opened

    def _asked(self, request: Any) -> tuple[NodeStore, list[bytes]]:
        """The store, and the digests that a request names."""
        opened = self._opened()
        opened.check(request.layout)
        return opened.store, _digests(request.digests)

    async def See(self, request: pb.SeeRequest, context: Any) -> pb.SeeResponse:
        opened = self._opened()
        opened.check(request.layout)
        tiers, now_s = opened.store.tiers, time.monotonic()
        for prompt in request.prompts:
            digests = _digests(prompt.digests)
            if len(prompt.worth_s) != len(digests):
                raise CallerError(f"worth_s has {len(prompt.worth_s)} entries; there are {len(digests)} digests")
            tiers.see(digests, prompt.worth_s, _facts(prompt), now_s)
        opened.store.mover.wake()
        speeds = opened.store.mover.reading
        return pb.SeeResponse(
            speeds=[
                TierSpeed(tier=WireTier.ValueType(tier), bytes_per_s=speed.bytes_per_s, latency_s=speed.latency_s)
                for tier, speed in speeds.items()
                if speed.bytes_per_s
            ]
        )

    async def Offload(self, request: pb.OffloadRequest, context: Any) -> pb.OffloadResponse:
        store, digests = self._asked(request)
        if len(request.block_ids) != len(digests):
            raise CallerError(f"block_ids has {len(request.block_ids)} entries; there are {len(digests)} digests")
        source, block_ids = Source.of(request.address, request.source), list(request.block_ids)
        if source.region.block_bytes != store.pool.block_bytes or not source.region.holds(block_ids):
            raise CallerError("source does not hold these blocks: block_bytes or block_ids are wrong")
        offer = Offer(source, digests, block_ids, _facts(request), request.stay_on_device)
        outcomes = list(map(_OUTCOMES.__getitem__, await store.take(offer)))
        for outcome in set(outcomes):
            name = pb.OffloadResponse.Outcome.Name(outcome).removeprefix("OUTCOME_").lower()
            metrics.offered_blocks.labels(name).inc(outcomes.count(outcome))
        return pb.OffloadResponse(outcomes=outcomes)

    async def Onboard(self, request: pb.OnboardRequest, context: Any) -> AsyncIterator[pb.OnboardUpdate]:
        _, digests = self._asked(request)
        async for update in self._opened().onboardings.run(digests, request.tenant):
            yield update

    async def Lookup(self, request: pb.LookupRequest, context: Any) -> pb.LookupResponse:
        store, digests = self._asked(request)
        found = [store.tiers.find([digest]) for digest in digests]
        return pb.LookupResponse(tiers=[WireTier.ValueType(one[0]) if one else TIER_UNSPECIFIED for one in found])

    async def Pin(self, request: pb.PinRequest, context: Any) -> pb.PinResponse:
        store, digests = self._asked(request)
        if not 0 < request.ttl_s < float("inf"):
            raise CallerError(f"ttl_s is {request.ttl_s}; it must be a finite number above 0")
        return pb.PinResponse(pinned_blocks=store.tiers.readers.pin(digests, time.monotonic() + request.ttl_s))

    async def Unpin(self, request: pb.UnpinRequest, context: Any) -> pb.UnpinResponse:
        store, digests = self._asked(request)
        store.tiers.readers.unpin(digests)
        return pb.UnpinResponse()

    async def Evict(self, request: pb.EvictRequest, context: Any) -> pb.EvictResponse:
        store, digests = self._asked(request)
        tier = _tier(request.tier, store)
        if request.all:
            spaces = store.tiers.spaces
            digests = list({copy.digest: None for one in ([tier] if tier else spaces) for copy in spaces[one]})
        return pb.EvictResponse(evicted_blocks=await store.evict(digests, tier))

    async def GetStats(self, request: pb.StatsRequest, context: Any) -> pb.StatsResponse:
        if self.opened is None:
            return pb.StatsResponse()
        store = self.opened.store
        stats = [_stats(store, tier) for tier in store.tiers.spaces]
        return pb.StatsResponse(layout=self.opened.layout, tiers=stats, leases=len(store.tiers.readers))

    async def KvEvents(self, request: KvEventsRequest, context: Any) -> AsyncIterator[KvEventBatch]:
        store = self._opened().store
        async for batch in event_batches(store.log, self._epoch, store.news.wait, request):
            yield batch

    async def ReadBlocks(self, request: ReadBlocksRequest, context: Any) -> AsyncIterator[BlockData]:
        opened = self._opened()
        block_ids = opened.onboardings.may_read(request.staging_id, request.block_ids)
        async for chunk in read_in_chunks(opened.store.pool, block_ids):
            yield chunk


def _digests(packed: bytes) -> list[bytes]:
    if len(packed) % DIGEST_BYTES:
        raise CallerError(f"digests has {len(packed)} bytes; it must be a multiple of {DIGEST_BYTES}")
    return [packed[at : at + DIGEST_BYTES] for at in range(0, len(packed), DIGEST_BYTES)]


def _facts(given: Any) -> Facts:
    try:
        return Facts(tenant=given.tenant, priority=given.priority, keep_s=given.keep_s)
    except ValueError as error:
        raise CallerError(str(error)) from error


def _tier(given: int, store: NodeStore) -> Tier | None:
    if given == TIER_UNSPECIFIED:
        return None
    if given not in store.tiers.spaces:
        raise CallerError(f"tier is {given}; there are {', '.join(tier.name for tier in store.tiers.spaces)}")
    return Tier(given)


def _stats(store: NodeStore, tier: Tier) -> pb.TierStats:
    space, counts = store.tiers.spaces[tier], store.tiers.counts[tier]
    reading, writing = store.mover.reading.get(tier), store.mover.writing.get(tier, store.taking)
    return pb.TierStats(
        tier=WireTier.ValueType(tier),
        capacity_blocks=space.shape.num_blocks,
        used_blocks=len(space),
        pinned_blocks=space.num_pinned,
        stored_blocks=counts.stored,
        refused_blocks=counts.refused,
        evicted_blocks=counts.evicted,
        expired_blocks=counts.expired,
        failed_blocks=counts.failed,
        hit_blocks=store.hits[tier],
        read_bytes_per_s=reading.bytes_per_s if reading else 0.0,
        write_bytes_per_s=writing.bytes_per_s,
    )
