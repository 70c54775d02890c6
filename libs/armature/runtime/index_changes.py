"""The wire's words for changes of the index in the core's."""

from armature.index.change import Change, ChangeKind
from armature.index.packing import pack_hashes, unpack_hashes
from armature.index.tiers import Tier
from armature.runtime.errors import PeerError
from armature.v1.common_pb2 import Tier as WireTier
from armature.v1.kv_index_pb2 import WorkerChange
from armature.v1.worker_pb2 import KvEvent


def change_of(change: WorkerChange) -> Change:
    """A change as the index takes it.

    Raises:
        PeerError: it names no kind or tier that there is, or its hashes are torn.
    """
    try:
        tier = Tier(change.tier) if change.tier else None
        hashes = unpack_hashes(change.sequence_hashes)
        return Change(ChangeKind(change.kind), change.worker_id, tier, hashes, tuple(change.readers))
    except ValueError as error:
        raise PeerError(f"a change of {change.worker_id} makes no sense: {error}") from error


def change_by(worker_id: str, event: KvEvent) -> WorkerChange:
    """A worker's event as a change; the kinds that both have bear the same numbers."""
    kind = WorkerChange.Kind.ValueType(event.kind)
    return WorkerChange(kind=kind, worker_id=worker_id, tier=event.tier, sequence_hashes=event.sequence_hashes)


def told_change(change: Change) -> WorkerChange:
    """A change as the wire takes it."""
    return WorkerChange(
        kind=WorkerChange.Kind.ValueType(change.kind),
        worker_id=change.worker_id,
        tier=WireTier.ValueType(change.tier or 0),
        sequence_hashes=pack_hashes(change.hashes),
        readers=change.readers,
    )
