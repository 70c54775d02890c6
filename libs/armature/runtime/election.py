"""One leader among processes that want to be it: who holds a key in etcd under its lease.

Nobody leads without a lease: a leader that can't reach etcd stops believing in itself, by its own clock, before etcd
lets the key go and another one takes over. So there may be no leader for a lease's time, but never two.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing, suppress

from armature.runtime.etcd import EtcdClient
from armature.runtime.etcd_errors import EtcdError
from armature.runtime.session import Session
from armature.runtime.watch import PrefixWatch
from armature.third_party.etcd.v3 import etcd_pb2 as pb

log = logging.getLogger(__name__)

_AGAIN_S = 1.0
"""Until a candidate tries again whose lease was not there, or whom etcd did not answer."""


class Election:
    """Campaigns for `key` as `candidate` while `run()` runs."""

    def __init__(self, client: EtcdClient, session: Session, key: str, candidate: str) -> None:
        self.on_change: Callable[[bool], None] = lambda leads: None
        """Is told whenever leadership comes or goes."""
        self._client = client
        self._session = session
        self._key = key
        self._candidate = candidate
        self._watch = PrefixWatch(client, key)
        self._news = asyncio.Event()
        self._was_leader = False

    @property
    def is_leader(self) -> bool:
        """Whether the key is ours, and our lease lives."""
        holder = self._watch.records.get(self._key)
        return holder is not None and self._session.is_live and holder.lease_id == self._session.lease_id

    @property
    def leader(self) -> str:
        """Who leads, as far as is known; empty: nobody."""
        holder = self._watch.records.get(self._key)
        return holder.value.decode(errors="replace") if holder is not None else ""

    async def run(self) -> None:
        """Campaign until cancelled; the key goes with the lease."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow(), name="leader")
            while True:
                # Also without news: a lease ends by our own clock, and a new one comes without a word of the key.
                with suppress(TimeoutError):
                    async with asyncio.timeout(_AGAIN_S):
                        await self._news.wait()
                self._news.clear()
                if not self.leader and not self._watch.is_stale and self._session.is_live:
                    await self._campaign()
                self._tell()

    async def _follow(self) -> None:
        async with aclosing(self._watch.batches()) as batches:
            async for _ in batches:
                self._news.set()

    async def _campaign(self) -> None:
        key = self._key.encode()
        nobody = pb.Compare(result=pb.Compare.EQUAL, target=pb.Compare.CREATE, key=key, create_revision=0)
        put = pb.PutRequest(key=key, value=self._candidate.encode(), lease=self._session.lease_id)
        try:
            await self._client.txn(pb.TxnRequest(compare=[nobody], success=[pb.RequestOp(request_put=put)]))
        except EtcdError as error:
            log.warning("can't campaign for %s: %s", self._key, error)

    def _tell(self) -> None:
        if self.is_leader is not self._was_leader:
            self._was_leader = self.is_leader
            log.info("%s %s", "leading" if self._was_leader else "not leading any more", self._key)
            self.on_change(self._was_leader)
