"""Who can read what a kv-offload keeps: the workers of its node whose blocks have its layout."""

from collections.abc import Iterator

from armature.index.change import Change, ChangeKind
from armature.runtime.placement import OFFLOAD_KIND
from armature.runtime.roster import MemberChange
from armature.v1.common_pb2 import Member


class NodeReaders:
    """Follows workers and kv-offloads."""

    def __init__(self) -> None:
        self._workers: dict[str, Member] = {}
        self._offloads: dict[str, Member] = {}
        self._told: dict[str, list[str]] = {}
        """The readers of each kv-offload."""

    def on_change(self, change: MemberChange) -> list[Change]:
        """A member has come, changed or left; whose readers are others now. Of one that is gone nothing is said."""
        member = change.member
        known = self._offloads if member.kind == OFFLOAD_KIND else self._workers
        if change.kind == "left":
            known.pop(member.id, None)
            self._told.pop(member.id, None)
        else:
            known[member.id] = member
        return list(self._news())

    def _news(self) -> Iterator[Change]:
        for offload in self._offloads.values():
            readers = [worker.id for worker in self._workers.values() if _reads(worker, offload)]
            if self._told.get(offload.id) != readers:
                self._told[offload.id] = readers
                yield Change(ChangeKind.ATTACHED, offload.id, readers=readers)


def _reads(worker: Member, offload: Member) -> bool:
    layout = offload.offload.layout
    is_alike = layout.kv_fingerprint == worker.worker.kv_fingerprint
    return worker.node == offload.node and offload.offload.HasField("layout") and is_alike
