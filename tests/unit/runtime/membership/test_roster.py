from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armature.runtime.etcd_records import Record
from armature.runtime.mirror import Change
from armature.runtime.roster import MemberChange, Roster
from armature.runtime.watch import Batch
from armature.v1.common_pb2 import MEMBER_STATE_DRAINING, Member

PREFIX = "/armature/cell/"


def member(member_id: str, kind: str = "router", **fields: Any) -> Member:
    return Member(id=member_id, kind=kind, **{"address": f"{member_id}:1", **fields})


def there(one: Member, created: int = 1) -> Change:
    key = f"{PREFIX}{one.kind}/{one.id}"
    return Change(Record(key, one.SerializeToString(), created, created))


def gone(one: Member) -> Change:
    return Change(there(one).record, is_deleted=True)


def batch(*changes: Change, is_doubtful: bool = False) -> Batch:
    return Batch(changes, is_doubtful)


def short(changes: list[MemberChange]) -> list[tuple[str, str]]:
    return [(change.kind, change.member.id) for change in changes]


def test_members_join_are_updated_and_leave() -> None:
    roster = Roster(PREFIX, ["router"])
    a, b = member("a"), member("b")
    assert short(roster.apply(batch(there(a), there(b)), 0)) == [("joined", "a"), ("joined", "b")]
    draining = member("a", state=MEMBER_STATE_DRAINING)
    assert roster.apply(batch(there(draining)), 0) == [MemberChange("updated", draining)]
    assert roster.apply(batch(gone(b)), 0) == [MemberChange("left", b)]
    assert roster.members == {"a": draining}


def test_a_record_that_says_the_same_again_is_no_change() -> None:
    roster = Roster(PREFIX)
    roster.apply(batch(there(member("a"))), 0)
    assert roster.apply(batch(there(member("a"), created=9)), 0) == []


def test_only_the_kinds_asked_for_are_members() -> None:
    records = [there(member("r", "router")), there(member("g", "gateway")), there(member("p", "planner"))]
    roster = Roster(PREFIX, ["router", "gateway"])
    assert short(roster.apply(batch(*records), 0)) == [("joined", "g"), ("joined", "r")]
    assert short(Roster(PREFIX).apply(batch(*records), 0)) == [("joined", "g"), ("joined", "p"), ("joined", "r")]


@pytest.mark.parametrize(
    "value",
    [b"\xff\xff\xff", b"", b"not a member", member("someone-else").SerializeToString(), b"\x0a\xff\xff\xff\xff\x0f"],
    ids=["bytes", "nothing", "text", "another id", "cut off"],
)
def test_a_value_that_is_no_record_of_its_key_is_skipped(value: bytes, caplog: pytest.LogCaptureFixture) -> None:
    roster = Roster(PREFIX)
    broken = Change(Record(PREFIX + "router/a", value, 1, 1))
    assert short(roster.apply(batch(broken, there(member("b"))), 0)) == [("joined", "b")]
    assert PREFIX + "router/a" in caplog.text
    # And a member whose record becomes unreadable is one no more, as for whoever reads it only now.
    assert short(roster.apply(batch(there(member("a"))), 0)) == [("joined", "a")]
    assert short(roster.apply(batch(broken), 0)) == [("left", "a")]


def test_an_address_belongs_to_the_record_created_last() -> None:
    roster = Roster(PREFIX)
    former, successor = member("a-1", address="h:1"), member("a-2", address="h:1")
    roster.apply(batch(there(former, created=5)), 0)
    assert short(roster.apply(batch(there(successor, created=8)), 0)) == [("left", "a-1"), ("joined", "a-2")]
    # The former lease ends later, and tells nobody anything new.
    assert roster.apply(batch(gone(former)), 0) == []
    assert roster.members == {"a-2": successor}


def test_members_without_an_address_do_not_displace_each_other() -> None:
    roster = Roster(PREFIX)
    roster.apply(batch(there(member("a", address="")), there(member("b", address=""))), 0)
    assert set(roster.members) == {"a", "b"}


def test_a_member_that_changes_its_kind_stays_one_member() -> None:
    roster = Roster(PREFIX)
    prefill, decode = member("w", "prefill-worker"), member("w", "decode-worker")
    roster.apply(batch(there(prefill, created=5)), 0)
    assert roster.apply(batch(there(decode, created=6)), 0) == [MemberChange("updated", decode)]
    assert roster.apply(batch(gone(prefill)), 0) == []
    assert roster.members == {"w": decode}


def test_an_absence_in_doubt_is_waited_out() -> None:
    roster = Roster(PREFIX, grace_s=10)
    a, b = member("a"), member("b")
    roster.apply(batch(there(a, created=5), there(b, created=6)), 0)
    assert roster.apply(batch(gone(a), gone(b), is_doubtful=True), 100) == []
    assert roster.next_drop_at_s == 110
    # One comes back, though with a smaller revision: the store begins anew.
    assert roster.apply(batch(there(a, created=2)), 101) == []
    assert roster.drop_absent(109.9) == []
    assert roster.drop_absent(110) == [MemberChange("left", b)]
    assert roster.next_drop_at_s is None
    assert roster.members == {"a": a}


def test_whoever_was_draining_is_not_waited_for() -> None:
    roster = Roster(PREFIX)
    leaving = member("a", state=MEMBER_STATE_DRAINING)
    roster.apply(batch(there(leaving)), 0)
    assert short(roster.apply(batch(gone(leaving), is_doubtful=True), 0)) == [("left", "a")]


def test_a_living_record_displaces_one_that_is_only_waited_for() -> None:
    roster = Roster(PREFIX)
    former, successor = member("a-1", address="h:1"), member("a-2", address="h:1")
    roster.apply(batch(there(former, created=50)), 0)
    roster.apply(batch(gone(former), is_doubtful=True), 0)
    assert short(roster.apply(batch(there(successor, created=2)), 1)) == [("left", "a-1"), ("joined", "a-2")]


RECORDS = st.dictionaries(st.sampled_from("abcdef"), st.tuples(st.sampled_from(["h:1", "h:2", ""]), st.integers(1, 4)))


@given(RECORDS, st.randoms(use_true_random=False))
def test_the_members_do_not_depend_on_the_order_of_the_records(records: dict[str, tuple[str, int]], rng: Any) -> None:
    changes = [there(member(key, address=address), created) for key, (address, created) in records.items()]
    at_once, one_by_one = Roster(PREFIX), Roster(PREFIX)
    at_once.apply(batch(*changes), 0)
    rng.shuffle(changes)
    told: dict[str, Member] = {}
    for change in changes:
        for one in one_by_one.apply(batch(change), 0):
            assert (one.kind == "joined") == (one.member.id not in told)
            if one.kind == "left":
                del told[one.member.id]
            else:
                told[one.member.id] = one.member
    assert at_once.members == one_by_one.members == told
    assert list(at_once.members) == list(one_by_one.members)
