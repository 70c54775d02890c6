"""Asks the kv-index to take in anew what a kv-offload tells, when workers have found that it has not what it tells."""

import asyncio
import logging
import time
from collections.abc import Callable

import grpc

from armature.index.trust import TrustState
from armature.routing.router import RoutingCore
from armature.runtime.channels import ChannelPool
from armature.v1.common_pb2 import Member
from armature.v1.kv_index_pb2 import ResyncRequest
from armature.v1.kv_index_pb2_grpc import KvIndexStub

log = logging.getLogger(__name__)

INTERVAL_S = 2.0
_TIMEOUT_S = 1.0


class Disbelief:
    """`followed` says which kv-index to ask, the one whose changes come back; that is how belief returns."""

    def __init__(self, core: RoutingCore, followed: Callable[[], Member | None], channels: ChannelPool) -> None:
        self._core = core
        self._followed = followed
        self._channels = channels

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            await asyncio.sleep(INTERVAL_S)
            await self.ask()

    async def ask(self) -> None:
        """Ask for all that are distrusted although everything that they tell is known."""
        member, trust = self._followed(), self._core.trust
        for store_id in sorted(self._core.distrusted_stores(time.monotonic())):
            if member is None or trust.state(store_id) is not TrustState.EXACT:
                continue
            log.warning(
                "%s has not what it tells to keep; its blocks count for nothing until it is heard anew", store_id
            )
            try:
                stub = KvIndexStub(self._channels.get(member.address))
                await stub.Resync(ResyncRequest(source_id=store_id), timeout=_TIMEOUT_S)
            except grpc.aio.AioRpcError as error:
                log.info("kv-index %s was not asked to hear %s anew: %s", member.id, store_id, error.code().name)
