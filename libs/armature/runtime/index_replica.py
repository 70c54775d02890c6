"""Keeps somebody's index a copy of the kv-index's, by following one of them, and the trust in every source with it."""

import asyncio
import logging
import time
from collections.abc import Iterable
from typing import Protocol

from google.protobuf.message import DecodeError
from prometheus_client import Counter, Gauge

from armature.index.change import Change, ChangeKind
from armature.index.prefix_index import PrefixIndex
from armature.index.trust import Trust
from armature.runtime.backoff import Backoff
from armature.runtime.channels import ChannelPool
from armature.runtime.errors import PeerError
from armature.runtime.index_changes import change_of
from armature.runtime.lean_call import read_messages
from armature.runtime.membership import MemberChange
from armature.runtime.news_gate import NewsGate
from armature.runtime.trust_meter import TrustMeter
from armature.v1.common_pb2 import MEMBER_STATE_DRAINING, Member
from armature.v1.kv_index_pb2 import FollowRequest, IndexUpdate

log = logging.getLogger(__name__)

_copies = Counter("armature_router_index_copies_total", "Full copies of the index taken over.")
_stale_s = Gauge("armature_router_index_stale_seconds", "For how long the index has not been followed; 0 while it is.")
_blocks = Gauge("armature_router_index_blocks", "Distinct blocks in the index.")

FOLLOW = "/armature.v1.KvIndex/Follow"
_MEASURE_INTERVAL_S = 1.0


class IndexHolder(Protocol):
    """Who uses the copy: a routing core. A better one replaces `index` as a whole."""

    index: PrefixIndex
    trust: Trust
    """How far each worker's entry can be believed; whoever uses it tells it what predictions have come to."""


class Replica:
    """Follows the kv-index that has been there longest, another one if it fails.

    A new copy is built beside the old one, which serves until the new one is whole. While none is followed the copy is
    kept, and all of it is stale.
    """

    def __init__(self, holder: IndexHolder, channels: ChannelPool, gate: NewsGate | None = None) -> None:
        self._holder = holder
        self._gate = gate
        self._channels = channels
        self.followed: Member | None = None
        """The kv-index whose changes come in; None while the copy is not followed."""
        self._members: dict[str, Member] = {}
        self._failed_id = ""
        self._changed = asyncio.Event()
        self._lost_s = time.monotonic()
        self._followed = asyncio.Event()
        """Set while the core's index is whole and its changes come in."""

    def on_change(self, change: MemberChange) -> None:
        """A kv-index has come, changed or left."""
        member = change.member
        if change.kind == "left":
            self._members.pop(member.id, None)
        else:
            self._members[member.id] = member
        self._changed.set()

    async def settled(self, timeout_s: float) -> bool:
        """Wait for the first copy, if there is anybody to have it from; False if that takes longer than `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                if self._members:
                    await self._followed.wait()
        except TimeoutError:
            return False
        return True

    async def run(self) -> None:
        """Follow until cancelled."""
        backoff = Backoff()
        while True:
            member = self._choose()
            if member is None:
                self._changed.clear()
                await self._changed.wait()
                continue
            try:
                reason = await self._follow(member, backoff)
            except (DecodeError, PeerError) as error:
                reason = str(error)
            log.warning("kv-index %s is not followed any more: %s", member.id, reason)
            self._failed_id = member.id
            if member.id not in self._members:
                await self._channels.discard(member.address)
            await asyncio.sleep(backoff.next_s())

    async def measure(self) -> None:
        """Keep the gauges up to date until cancelled."""
        meter = TrustMeter(self._holder.trust)
        while True:
            meter.read(time.monotonic())
            _stale_s.set(0.0 if self._followed.is_set() else time.monotonic() - self._lost_s)
            _blocks.set(self._holder.index.size().blocks)
            await asyncio.sleep(_MEASURE_INTERVAL_S)

    def _choose(self) -> Member | None:
        ranked = sorted(
            self._members.values(),
            key=lambda member: (member.id == self._failed_id, member.state == MEMBER_STATE_DRAINING, member.epoch),
        )
        return ranked[0] if ranked else None

    async def _follow(self, member: Member, backoff: Backoff) -> str:
        """Until the stream ends; why it did."""
        building: _Copy | None = None

        def take(data: bytes) -> None:
            nonlocal building
            update = IndexUpdate.FromString(data)
            if update.reset:
                building = _Copy()
            changes = [change_of(change) for change in update.changes]
            if building is None:
                self._apply(changes)
                return
            building.take(changes)
            if update.complete:
                self._take_over(building, member)
                building = None
                backoff.reset()

        method = self._channels.method(member.address, FOLLOW)
        try:
            return await read_messages(method, FollowRequest().SerializeToString(), take, self._gate)
        finally:
            if self.followed is not None:
                self.followed = None
                self._followed.clear()
                self._lost_s = time.monotonic()
                self._holder.trust.silence(self._lost_s)

    def _apply(self, changes: Iterable[Change]) -> None:
        index, trust, now_s = self._holder.index, self._holder.trust, time.monotonic()
        for change in changes:
            index.apply(change)
            trust.apply(change, now_s)

    def _take_over(self, copy: "_Copy", member: Member) -> None:
        self._holder.index, now_s = copy.index, time.monotonic()
        for change in copy.trust.values():
            self._holder.trust.apply(change, now_s)
        for worker_id in self._holder.trust.worker_ids:
            if worker_id not in copy.index:
                self._holder.trust.forget(worker_id)
        self.followed = member
        self._failed_id = ""
        self._followed.set()
        _copies.inc()


class _Copy:
    """One that is being received; trust in it counts from when it is whole."""

    def __init__(self) -> None:
        self.index = PrefixIndex()
        self.trust: dict[str, Change] = {}

    def take(self, changes: Iterable[Change]) -> None:
        for change in changes:
            self.index.apply(change)
            if ChangeKind.STALE <= change.kind <= ChangeKind.ASSUMED:
                self.trust[change.worker_id] = change
