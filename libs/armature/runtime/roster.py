"""Who the members of a cell are, from their records in etcd. Decides; asks nobody.

The members that are told are a function of the records alone, whatever the order in which they came: two consumers
that see the same records see the same members.
"""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from google.protobuf.message import DecodeError

from armature.runtime.etcd_records import Record
from armature.runtime.watch import Batch
from armature.v1.common_pb2 import MEMBER_STATE_DRAINING, Member

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MemberChange:
    """What happened to a member; `member` is as it is now, or as it was when it left."""

    kind: Literal["joined", "updated", "left"]
    member: Member


@dataclass(frozen=True, slots=True)
class _Claim:
    key: str
    member: Member
    create_revision: int
    # When an absent record is dropped for good; None while the record is there.
    drop_at_s: float | None = None

    @property
    def rank(self) -> tuple[bool, int, str]:
        return self.drop_at_s is None, self.create_revision, self.key


class Roster:
    """The members of some kinds (all kinds if none is named) under the records' common `prefix`.

    Members of whose absence the watch is in doubt are kept for `grace_s`, in which they can register again: so neither
    a lost etcd disk nor a frozen etcd stops traffic. Those that were draining have left.
    """

    def __init__(self, prefix: str, kinds: Collection[str] = (), *, grace_s: float = 10.0) -> None:
        self._prefix = prefix
        self._kinds = frozenset(kinds)
        self._grace_s = grace_s
        self._claims: dict[str, _Claim] = {}
        self._members: dict[str, Member] = {}
        self.members: Mapping[str, Member] = MappingProxyType(self._members)

    @property
    def next_drop_at_s(self) -> float | None:
        """When `drop_absent` has something to do; None if every member's record is there."""
        return min((c.drop_at_s for c in self._claims.values() if c.drop_at_s is not None), default=None)

    def apply(self, batch: Batch, now_s: float) -> list[MemberChange]:
        """Take over changed records; return what that means: who left, then who was updated, then who joined."""
        for change in batch.changes:
            key = change.record.key
            claim = self._claims.pop(key, None)
            if not change.is_deleted:
                claim = self._claim_of(change.record)
            elif batch.is_doubtful and claim is not None and claim.member.state != MEMBER_STATE_DRAINING:
                claim = replace(claim, drop_at_s=now_s + self._grace_s)
            else:
                claim = None
            if claim is not None:
                self._claims[key] = claim
        return self._elect()

    def drop_absent(self, now_s: float) -> list[MemberChange]:
        """Let go of members that did not register again in time."""
        self._claims = {k: c for k, c in self._claims.items() if c.drop_at_s is None or c.drop_at_s > now_s}
        return self._elect()

    def _claim_of(self, record: Record) -> _Claim | None:
        kind, _, member_id = record.key.removeprefix(self._prefix).partition("/")
        if self._kinds and kind not in self._kinds:
            return None
        try:
            member = Member.FromString(record.value)
        except DecodeError:
            log.warning("skipped %s: its value is no member record", record.key)
            return None
        if (member.kind, member.id) != (kind, member_id):
            log.warning("skipped %s: its record says %s/%s", record.key, member.kind, member.id)
            return None
        return _Claim(record.key, member, record.create_revision)

    def _elect(self) -> list[MemberChange]:
        """An address belongs to the record that was created last: what it replaces is a process that is no more."""
        ranked = sorted(self._claims.values(), key=lambda claim: claim.rank)
        holders = {claim.member.address or claim.key: claim for claim in ranked}
        elected = {c.member.id: c.member for c in ranked if holders[c.member.address or c.key] is c}
        changes = _differences(self._members, elected)
        self._members.clear()
        self._members.update(elected)
        return changes


def _differences(before: Mapping[str, Member], after: Mapping[str, Member]) -> list[MemberChange]:
    left = [MemberChange("left", member) for key, member in before.items() if key not in after]
    kept = [(before[key], member) for key, member in after.items() if key in before]
    updated = [MemberChange("updated", new) for old, new in kept if new != old]
    joined = [MemberChange("joined", member) for key, member in after.items() if key not in before]
    return [*left, *updated, *joined]
