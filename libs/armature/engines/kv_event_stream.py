"""KV events as they are served: what a reader has missed, or a dump of everything and then what follows."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

from armature.blocks.events import KvEvent, KvEventKind
from armature.blocks.hashing import BlockDigest, pack_hashes
from armature.engines.kv_event_log import KvEventLog
from armature.index.tiers import Tier
from armature.v1 import worker_pb2 as worker
from armature.v1.common_pb2 import Tier as WireTier

HASHES_PER_MESSAGE = 8192
"""64 KiB."""
EVENTS_PER_MESSAGE = 1024

_KINDS = {
    KvEventKind.STORED: worker.KvEvent.KIND_STORED,
    KvEventKind.REMOVED: worker.KvEvent.KIND_REMOVED,
    KvEventKind.CLEARED: worker.KvEvent.KIND_CLEARED,
}


async def event_batches(
    log: KvEventLog, epoch: int, grown: Callable[[], Awaitable[None]], request: worker.KvEventsRequest
) -> AsyncIterator[worker.KvEventBatch]:
    """What the contract says of `KvEvents`; `grown` returns when the log has grown."""
    next_seq = request.next_seq if request.epoch == epoch else 0
    is_first = True
    while True:
        events = log.since(next_seq) if next_seq else None
        if events is None:
            next_seq = log.next_seq
            for batch in _dump(log, epoch):
                yield batch
        elif events or is_first:
            events = events[:EVENTS_PER_MESSAGE]
            yield worker.KvEventBatch(epoch=epoch, first_seq=next_seq, events=map(_event, events))
            next_seq += len(events)
        is_first = False
        if next_seq == log.next_seq:
            await grown()


def _dump(log: KvEventLog, epoch: int) -> list[worker.KvEventBatch]:
    batches = [
        worker.KvEventBatch(epoch=epoch, first_seq=log.next_seq, events=[_stored(tier, digests)], more=True)
        for tier, digests in _pieces(log)
    ] or [worker.KvEventBatch(epoch=epoch, first_seq=log.next_seq)]
    batches[0].reset = True
    batches[-1].more = False
    return batches


def _pieces(log: KvEventLog) -> Iterator[tuple[Tier, Sequence[BlockDigest]]]:
    for tier, held in log.held().items():
        for first in range(0, len(held), HASHES_PER_MESSAGE):
            yield tier, held[first : first + HASHES_PER_MESSAGE]


def _event(event: KvEvent) -> worker.KvEvent:
    tier = WireTier.ValueType(event.tier)
    return worker.KvEvent(kind=_KINDS[event.kind], tier=tier, sequence_hashes=pack_hashes(event.digests))


def _stored(tier: Tier, digests: Sequence[BlockDigest]) -> worker.KvEvent:
    kind = worker.KvEvent.KIND_STORED
    return worker.KvEvent(kind=kind, tier=WireTier.ValueType(tier), sequence_hashes=pack_hashes(digests))
