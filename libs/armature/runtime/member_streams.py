"""One long-lived stream to each member of some kind: opened when it joins, opened again when it breaks, ended when it
leaves. What is read on it is the caller's business.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

import grpc

from armature.runtime.backoff import Backoff
from armature.runtime.channels import ChannelPool
from armature.runtime.errors import PeerError
from armature.runtime.roster import MemberChange
from armature.runtime.tasks import Spawn
from armature.v1.common_pb2 import Member

log = logging.getLogger(__name__)

Read = Callable[[Member, Callable[[], None]], Awaitable[None]]
"""Opens a stream to the member and reads it to its end, calling the second argument whenever it has read something.

It may fail with a gRPC error or a PeerError; however it ends, it is called again after a pause.
"""


class MemberStreams:
    """Owns a task per member, and discards its channel; `on_change` is to be told of every change in the membership."""

    def __init__(self, name: str, channels: ChannelPool, spawn: Spawn, read: Read) -> None:
        self._name = name
        self._channels = channels
        self._spawn = spawn
        self._read = read
        self._tasks: dict[str, tuple[Member, asyncio.Task[None]]] = {}
        """Those that are followed, by id."""

    def on_change(self, change: MemberChange) -> bool:
        """Follow a member that has joined, or moved; leave one that has left. Whether a stream is opened."""
        member = change.member
        known, task = self._tasks.get(member.id, (member, None))
        if task is not None and (change.kind == "left" or known.address != member.address):
            task.cancel()
            del self._tasks[member.id]
            if all(known.address != used.address for used, _ in self._tasks.values()):
                self._spawn(self._channels.discard(known.address))
        if change.kind == "left" or member.id in self._tasks:
            return False
        self._tasks[member.id] = member, self._spawn(self._follow(member))
        return True

    def restart(self, member_id: str) -> None:
        """Open the stream to a member anew, now; unknown ones are ignored."""
        if member_id in self._tasks:
            member, task = self._tasks[member_id]
            task.cancel()
            self._tasks[member_id] = member, self._spawn(self._follow(member))

    async def _follow(self, member: Member) -> None:
        backoff = Backoff()
        while True:
            try:
                await self._read(member, backoff.reset)
            except grpc.aio.AioRpcError as error:
                log.info("%s of %s broke: %s %s", self._name, member.id, error.code().name, error.details())
            except PeerError as error:
                log.warning("%s of %s: %s", self._name, member.id, error)
            await asyncio.sleep(backoff.next_s())
