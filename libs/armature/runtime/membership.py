"""Who is in the cell: one record per process under `/armature/<namespace>/<kind>/<id>` in etcd.

While etcd is away the last known members are served and marked stale; nobody is dropped until etcd says so.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing

from armature.runtime.etcd import EtcdClient
from armature.runtime.roster import MemberChange, Roster
from armature.runtime.session import Session
from armature.runtime.watch import PrefixWatch
from armature.v1.common_pb2 import Member

__all__ = ["OWN_PREFIX", "MemberChange", "MembershipView", "Registration", "member_key", "namespace_prefix"]

log = logging.getLogger(__name__)


def namespace_prefix(namespace: str) -> str:
    """What the keys of all members of a cell begin with."""
    return f"/armature/{namespace}/"


def member_key(namespace: str, kind: str, member_id: str) -> str:
    return f"{namespace_prefix(namespace)}{kind}/{member_id}"


OWN_PREFIX = "/armature/~own/"
"""What services keep in etcd besides members begins with it and their namespace; none is called like that."""


class Registration:
    """Our own record: kept in etcd for as long as the session's lease lives, and put back when it was lost."""

    def __init__(self, session: Session, namespace: str) -> None:
        self._session = session
        self._namespace = namespace
        self._key = ""

    async def announce(self, member: Member) -> bool:
        """Write the record or replace it, under a new key if its kind has changed.

        False if etcd is away: it is written as soon as it is back.
        """
        former, self._key = self._key, member_key(self._namespace, member.kind, member.id)
        if former not in ("", self._key):
            self._session.forget(former)
        return await self._session.put(self._key, member.SerializeToString(deterministic=True))

    async def withdraw(self) -> bool:
        """Delete the record. False if etcd is away: it goes when it is back, or with the lease."""
        key, self._key = self._key, ""
        return await self._session.remove(key) if key else True


class MembershipView:
    """The members of some kinds (all kinds if none is named), live while `run()` runs.

    `on_change` is called once per member and change, in order, from the event loop; it must not block.
    """

    def __init__(
        self,
        client: EtcdClient,
        namespace: str,
        kinds: Sequence[str] = (),
        *,
        on_change: Callable[[MemberChange], None] | None = None,
        watch: PrefixWatch | None = None,
        grace_s: float = 10.0,
    ) -> None:
        prefix = namespace_prefix(namespace)
        self._watch = watch or PrefixWatch(client, prefix)
        self._roster = Roster(prefix, kinds, grace_s=grace_s)
        self._on_change = on_change
        self._is_loaded = asyncio.Event()
        self._dropping: asyncio.TimerHandle | None = None

    @property
    def members(self) -> Mapping[str, Member]:
        """The last known members by id."""
        return self._roster.members

    @property
    def is_stale(self) -> bool:
        """Whether somebody may be missing or gone: etcd can't be heard, or has lost its past and is being filled."""
        return self._watch.is_stale or self._roster.next_drop_at_s is not None

    def of_kind(self, kind: str) -> list[Member]:
        """The members of one kind, the longest registered first."""
        return [member for member in self.members.values() if member.kind == kind]

    async def loaded(self) -> None:
        """Wait until etcd has said for the first time who is there."""
        await self._is_loaded.wait()

    async def run(self) -> None:
        """Follow the membership until cancelled. What `on_change` raises ends it."""
        try:
            async with aclosing(self._watch.batches()) as batches:
                async for batch in batches:
                    self._tell(self._roster.apply(batch, time.monotonic()))
                    self._is_loaded.set()
        finally:
            if self._dropping is not None:
                self._dropping.cancel()

    def _tell(self, changes: Sequence[MemberChange]) -> None:
        for change in changes:
            log.info("%s %s %s at %s", change.member.kind, change.member.id, change.kind, change.member.address)
        if self._on_change is not None:
            for change in changes:
                self._on_change(change)
        self._plan_drop()

    def _plan_drop(self) -> None:
        if self._dropping is not None:
            self._dropping.cancel()
            self._dropping = None
        drop_at_s = self._roster.next_drop_at_s
        if drop_at_s is not None:
            delay_s = max(0.0, drop_at_s - time.monotonic())
            self._dropping = asyncio.get_running_loop().call_later(delay_s, self._drop)

    def _drop(self) -> None:
        self._tell(self._roster.drop_absent(time.monotonic()))
