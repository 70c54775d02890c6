"""A copy of all records under a prefix, kept by listings and by a watch's events. Decides what changed; asks nobody.

Invariant: `records` is what the store held at `revision`. So whoever resumes at `revision + 1` misses nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from armature.runtime.etcd_records import Listing, Record, record_of
from armature.third_party.etcd.v3 import etcd_pb2 as pb


@dataclass(frozen=True, slots=True)
class Change:
    """A record as it is now, or, if it `is_deleted`, as it was last."""

    record: Record
    is_deleted: bool = False


class Mirror:
    """Empty until the first listing."""

    def __init__(self) -> None:
        self.revision = 0
        self._cluster_id = 0
        self._records: dict[str, Record] = {}
        self.records: Mapping[str, Record] = MappingProxyType(self._records)

    @property
    def is_loaded(self) -> bool:
        return self.revision > 0

    def agrees_with(self, listing: Listing) -> bool:
        """Whether a listing at our revision is what we hold; if not, it comes from another store."""
        return listing.cluster_id == self._cluster_id and {r.key: r for r in listing.records} == self._records

    def may_precede(self, listing: Listing) -> bool:
        """Whether a later listing can come from the same store, as far as the records that are left can tell."""
        if listing.cluster_id != self._cluster_id or listing.revision < self.revision:
            return False
        created = {record.key: record.create_revision for record in listing.records}
        return not self._records or any(created.get(r.key) == r.create_revision for r in self._records.values())

    def replace(self, listing: Listing) -> list[Change]:
        """Take over a listing; return what differs from what was held, deletions first."""
        records = {record.key: record for record in listing.records}
        gone = [Change(record, is_deleted=True) for key, record in self._records.items() if key not in records]
        new = [Change(record) for key, record in records.items() if self._records.get(key) != record]
        self._records.clear()
        self._records.update(records)
        self.revision = listing.revision
        self._cluster_id = listing.cluster_id
        return gone + new

    def apply(self, events: Iterable[pb.Event]) -> list[Change]:
        """Take over a watch's events; return the changes. Events that are already contained change nothing."""
        changes: list[Change] = []
        newest = self.revision
        for event in events:
            record = record_of(event.kv)
            if record.mod_revision <= self.revision:
                continue
            # Several events may share a revision (a transaction), so the mark moves only after all of them.
            newest = max(newest, record.mod_revision)
            if event.type == pb.Event.PUT:
                self._records[record.key] = record
                changes.append(Change(record))
            elif (last := self._records.pop(record.key, None)) is not None:
                changes.append(Change(last, is_deleted=True))
        self.revision = newest
        return changes
