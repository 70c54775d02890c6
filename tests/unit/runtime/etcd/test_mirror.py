from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from armature.runtime.etcd_records import Listing, Record, record_of
from armature.runtime.mirror import Change, Mirror
from armature.third_party.etcd.v3 import etcd_pb2 as pb


@dataclass
class Store:
    """What etcd would hold and tell, in the plainest form."""

    cluster_id: int = 1
    revision: int = 1
    records: dict[str, Record] = field(default_factory=dict[str, Record])
    events: list[pb.Event] = field(default_factory=list[pb.Event])

    def put(self, key: str) -> None:
        self.revision += 1
        former = self.records.get(key)
        created = former.create_revision if former else self.revision
        kv = pb.KeyValue(key=key.encode(), value=b"%d" % self.revision, create_revision=created)
        kv.mod_revision = self.revision
        self.records[key] = record_of(kv)
        self.events.append(pb.Event(type=pb.Event.PUT, kv=kv))

    def delete(self, key: str) -> None:
        if self.records.pop(key, None) is not None:
            self.revision += 1
            kv = pb.KeyValue(key=key.encode(), mod_revision=self.revision)
            self.events.append(pb.Event(type=pb.Event.DELETE, kv=kv))

    def listing(self) -> Listing:
        return Listing(self.cluster_id, self.revision, tuple(self.records[key] for key in sorted(self.records)))


def replayed(records: dict[str, Record], changes: list[Change]) -> None:
    """Take over changes as a consumer would, who must never be told something that can't be."""
    for change in changes:
        key = change.record.key
        if change.is_deleted:
            assert records.pop(key) == change.record
        else:
            assert records.get(key) != change.record
            records[key] = change.record


OPERATIONS = st.lists(st.tuples(st.sampled_from(["put", "delete"]), st.sampled_from("abcd")), max_size=40)


@given(
    OPERATIONS,
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40), st.sampled_from(["events", "events", "listing"]))),
)
def test_a_mirror_follows_its_store_whatever_arrives_twice_or_as_a_listing(
    operations: list[tuple[str, str]], deliveries: list[tuple[int, int, str]]
) -> None:
    store, mirror, told = Store(), Mirror(), dict[str, Record]()
    replayed(told, mirror.replace(store.listing()))
    for kind, key in operations:
        getattr(store, kind)(key)
    for again, length, way in [*deliveries, (40, 80, "events")]:
        # A delivery begins at or before what is known, as a watch that resumes does, or is everything at once.
        if way == "listing":
            replayed(told, mirror.replace(store.listing()))
        else:
            known = sum(event.kv.mod_revision <= mirror.revision for event in store.events)
            replayed(told, mirror.apply(store.events[max(0, known - again) :][: again + length]))
        assert told == mirror.records
    assert mirror.records == store.records
    assert mirror.revision == store.revision
    assert mirror.agrees_with(store.listing())


def test_deletions_come_before_what_is_new_in_a_listing() -> None:
    store, mirror = Store(), Mirror()
    store.put("b")
    mirror.replace(store.listing())
    store.delete("b")
    store.put("a")
    changes = mirror.replace(store.listing())
    assert [(change.record.key, change.is_deleted) for change in changes] == [("b", True), ("a", False)]


def test_events_of_one_transaction_are_all_taken() -> None:
    mirror = Mirror()
    mirror.replace(Store().listing())
    kvs = [pb.KeyValue(key=key, create_revision=2, mod_revision=2) for key in (b"a", b"b")]
    changes = mirror.apply([pb.Event(type=pb.Event.PUT, kv=kv) for kv in kvs])
    assert [change.record.key for change in changes] == ["a", "b"]
    assert mirror.revision == 2


def test_another_store_is_told_from_the_same_store_later() -> None:
    store, mirror = Store(), Mirror()
    for key in "abc":
        store.put(key)
    mirror.replace(store.listing())
    store.delete("a")
    store.put("b")
    assert mirror.may_precede(store.listing())
    assert not mirror.agrees_with(store.listing())

    wiped = Store()
    assert not mirror.may_precede(wiped.listing())
    for key in "xyzxyz":
        wiped.put(key)
    assert wiped.revision > mirror.revision
    assert not mirror.may_precede(wiped.listing())

    renamed = Store(cluster_id=2, revision=store.revision, records=dict(store.records))
    assert not mirror.may_precede(renamed.listing())
