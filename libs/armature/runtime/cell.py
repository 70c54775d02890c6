"""Tells the core which workers and kv-offloads there are, and what workers have to do."""

import asyncio
import logging
import time
from collections.abc import Callable

from armature.routing.router import RoutingCore
from armature.runtime.channels import ChannelPool
from armature.runtime.errors import PeerError
from armature.runtime.lean_call import read_messages
from armature.runtime.member_streams import MemberStreams
from armature.runtime.membership import MemberChange
from armature.runtime.news_gate import NewsGate
from armature.runtime.placement import OFFLOAD_KIND, load_from, store_of, worker_of
from armature.runtime.tasks import Spawn
from armature.v1.common_pb2 import Member
from armature.v1.worker_pb2 import LoadRequest

log = logging.getLogger(__name__)

LEAST_INTERVAL_S = 0.05


class Cell:
    """Follows the membership of workers and kv-offloads, and each worker's load.

    While a load stream is broken the last report counts on, corrected by placements and time. News comes through
    `gate` and sets `changed`.
    """

    def __init__(
        self,
        core: RoutingCore,
        channels: ChannelPool,
        spawn: Spawn,
        reports_per_s: float,
        changed: asyncio.Event,
        gate: NewsGate | None = None,
    ) -> None:
        self._core = core
        self._gate = gate
        self._channels = channels
        self._reports_per_s = reports_per_s
        self._changed = changed
        self._streams = MemberStreams("load", channels, spawn, self._read)
        self.members: dict[str, Member] = {}
        """The workers that requests may be placed on, and the kv-offloads that those may read from."""

    def on_change(self, change: MemberChange) -> None:
        """A worker or kv-offload has come, changed or left."""
        if change.member.kind == OFFLOAD_KIND:
            self._on_offload(change.member, is_there=change.kind != "left")
        else:
            self._on_worker(change)

    def _on_offload(self, member: Member, *, is_there: bool) -> None:
        store = store_of(member) if is_there else None
        if store is None:
            self.members.pop(member.id, None)
            self._core.stores.remove(member.id)
        else:
            self.members[member.id] = member
            self._core.stores.put(store)

    def _on_worker(self, change: MemberChange) -> None:
        member = change.member
        if change.kind == "left":
            self.members.pop(member.id, None)
            self._core.remove_worker(member.id)
        else:
            try:
                self._core.put_worker(worker_of(member))
            except PeerError as error:
                log.error("nothing is placed on %s: %s", member.id, error)
                return
            self.members[member.id] = member
        self._changed.set()
        self._streams.on_change(change)

    async def _read(self, member: Member, has_read: Callable[[], None]) -> None:
        def take(data: bytes) -> None:
            self._core.report(member.id, load_from(data), time.monotonic())
            self._changed.set()
            has_read()

        # Hundreds of workers report many times a second: that is what a call without grpcio's threads is for.
        interval_s = max(LEAST_INTERVAL_S, len(self.members) / self._reports_per_s)
        request = LoadRequest(min_interval_s=interval_s).SerializeToString()
        method = self._channels.method(member.address, "/armature.v1.Worker/Load")
        reason = await read_messages(method, request, take, self._gate)
        log.info("load of %s broke: %s", member.id, reason)
