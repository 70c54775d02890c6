"""Keeps the core's index a copy of the kv-index's, by following one of them."""

import asyncio
import logging
import time

import grpc
from prometheus_client import Counter, Gauge

from armature.index.prefix_index import PrefixIndex
from armature.routing.router import RoutingCore
from armature.runtime.backoff import Backoff
from armature.runtime.channels import ChannelPool
from armature.runtime.errors import PeerError
from armature.runtime.index_changes import change_of
from armature.runtime.membership import MemberChange
from armature.v1.common_pb2 import MEMBER_STATE_DRAINING, Member
from armature.v1.kv_index_pb2 import FollowRequest, IndexUpdate
from armature.v1.kv_index_pb2_grpc import KvIndexStub

log = logging.getLogger(__name__)

_copies = Counter("armature_router_index_copies_total", "Full copies of the index taken over.")
_stale_s = Gauge("armature_router_index_stale_seconds", "For how long the index has not been followed; 0 while it is.")
_blocks = Gauge("armature_router_index_blocks", "Distinct blocks in the index.")

_MEASURE_INTERVAL_S = 1.0


class Replica:
    """Follows the kv-index that has been there longest, another one if it fails.

    A new copy is built beside the old one, which serves until the new one is whole.
    """

    def __init__(self, core: RoutingCore, channels: ChannelPool) -> None:
        self._core = core
        self._channels = channels
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
                await self._follow(member, backoff)
            except (grpc.aio.AioRpcError, PeerError) as error:
                log.warning("kv-index %s can't be followed: %s", member.id, _line(error))
            self._failed_id = member.id
            if member.id not in self._members:
                await self._channels.discard(member.address)
            await asyncio.sleep(backoff.next_s())

    async def measure(self) -> None:
        """Keep the gauges up to date until cancelled."""
        while True:
            _stale_s.set(0.0 if self._followed.is_set() else time.monotonic() - self._lost_s)
            _blocks.set(self._core.index.size().blocks)
            await asyncio.sleep(_MEASURE_INTERVAL_S)

    def _choose(self) -> Member | None:
        ranked = sorted(
            self._members.values(),
            key=lambda member: (member.id == self._failed_id, member.state == MEMBER_STATE_DRAINING, member.epoch),
        )
        return ranked[0] if ranked else None

    async def _follow(self, member: Member, backoff: Backoff) -> None:
        call = KvIndexStub(self._channels.get(member.address)).Follow(FollowRequest())
        building: PrefixIndex | None = None
        try:
            while isinstance(update := await call.read(), IndexUpdate):
                if update.reset:
                    building = PrefixIndex()
                target = building or self._core.index
                for change in update.changes:
                    target.apply(change_of(change))
                if update.complete and building is not None:
                    self._core.index, building = building, None
                    self._failed_id = ""
                    self._followed.set()
                    backoff.reset()
                    _copies.inc()
        finally:
            call.cancel()
            if self._followed.is_set():
                self._followed.clear()
                self._lost_s = time.monotonic()


def _line(error: Exception) -> str:
    return f"{error.code().name} {error.details()}" if isinstance(error, grpc.aio.AioRpcError) else str(error)
