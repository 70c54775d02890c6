"""Asks every member of a cell what it has to tell, all at once and each with a deadline."""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any

import grpc

from armature.console.picture import NOTHING, WORKERS, Heard
from armature.runtime.channels import ChannelPool
from armature.v1.common_pb2 import Member
from armature.v1.kv_index_pb2 import IndexStatsRequest
from armature.v1.kv_index_pb2_grpc import KvIndexStub
from armature.v1.kv_offload_pb2 import StatsRequest
from armature.v1.kv_offload_pb2_grpc import KvOffloadStub
from armature.v1.planner_pb2 import StatusRequest
from armature.v1.planner_pb2_grpc import PlannerStub
from armature.v1.router_pb2 import RouterStatsRequest
from armature.v1.router_pb2_grpc import RouterStub
from armature.v1.worker_pb2 import WorkerStatsRequest
from armature.v1.worker_pb2_grpc import WorkerStub

TIMEOUT_S = 0.8
"""Less than the time between two looks."""
AT_ONCE = 32

Ask = Callable[[grpc.aio.Channel], Any]

_ASK: dict[str, Ask] = {
    **dict.fromkeys(WORKERS, lambda channel: WorkerStub(channel).GetStats(WorkerStatsRequest(), timeout=TIMEOUT_S)),
    "router": lambda channel: RouterStub(channel).GetStats(RouterStatsRequest(), timeout=TIMEOUT_S),
    "kv-index": lambda channel: KvIndexStub(channel).GetStats(IndexStatsRequest(), timeout=TIMEOUT_S),
    "kv-offload": lambda channel: KvOffloadStub(channel).GetStats(StatsRequest(), timeout=TIMEOUT_S),
    "planner": lambda channel: PlannerStub(channel).GetStatus(StatusRequest(), timeout=TIMEOUT_S),
}
_PROBLEMS = {
    grpc.StatusCode.DEADLINE_EXCEEDED: f"no answer within {TIMEOUT_S:g} s",
    grpc.StatusCode.UNAVAILABLE: "can't be reached",
    grpc.StatusCode.UNIMPLEMENTED: "too old to tell anything",
}


class Sources:
    """Has connections of its own, which end with `close`."""

    def __init__(self, channels: ChannelPool) -> None:
        self.heard: dict[str, Heard] = {}
        """By member id."""
        self._channels = channels
        self._addresses: set[str] = set()
        self._places = asyncio.Semaphore(AT_ONCE)

    async def ask(self, members: Iterable[Member]) -> None:
        """Have `heard` tell of these members and of no others."""
        asked = [member for member in members if member.kind in _ASK]
        addresses = {member.address for member in asked}
        for address in self._addresses - addresses:
            await self._channels.discard(address)
        self._addresses = addresses
        heard = await asyncio.gather(*(self._ask(member) for member in asked))
        self.heard = {member.id: one for member, one in zip(asked, heard, strict=True)}

    async def close(self) -> None:
        await self._channels.close()

    async def _ask(self, member: Member) -> Heard:
        async with self._places:
            try:
                stats = await _ASK[member.kind](self._channels.get(member.address))
            except grpc.aio.AioRpcError as error:
                last = self.heard.get(member.id, NOTHING)
                return Heard(last.stats, last.at_s, _PROBLEMS.get(error.code(), error.code().name.lower()))
        return Heard(stats, time.monotonic())
