"""A kv-offload of one host tier over the plain transport: real calls and real bytes, and mishaps on demand."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from armature.blocks.hashing import DIGEST_BYTES
from armature.engines.simulated import HostBlockMemory
from armature.runtime.channels import ChannelPool
from armature.runtime.membership import MemberChange
from armature.runtime.server import RpcServer
from armature.runtime.tasks import forget_outcome
from armature.transfer.grpc_transport import BlocksServicer, GrpcTransport
from armature.transfer.source import Source
from armature.transfer.transports import Transports, describe_staging
from armature.v1 import common_pb2 as common
from armature.v1 import kv_offload_pb2 as contract
from armature.v1 import kv_offload_pb2_grpc, worker_pb2_grpc
from armature.v1.worker_pb2 import KvEvent, KvEventBatch, KvEventsRequest


@dataclass
class FakeOffload(kv_offload_pb2_grpc.KvOffloadServicer):
    """Keeps every block for ever, and says that it lies in `tier`."""

    memory: HostBlockMemory
    transports: Transports
    layout: common.KvLayout
    address: str = ""
    tier: int = common.TIER_G2
    held: dict[bytes, int] = field(default_factory=dict)
    events: list[KvEvent] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    seen: list[contract.SeenPrompt] = field(default_factory=list)
    onboards: int = 0
    tenants: list[str] = field(default_factory=list)
    """Of blocks that were offered or asked for."""
    stalls_after: int | None = None
    """Of the next prompts so many blocks are announced, and no more."""
    is_mute: bool = False
    """Takes questions and answers none."""
    is_ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Set whenever a call to onboard has ended."""

    @property
    def member(self) -> common.Member:
        return common.Member(
            id="kv-offload-1", kind="kv-offload", address=self.address, node="here",
            offload=common.OffloadInfo(layout=self.layout),
        )  # fmt: skip

    def joined(self) -> MemberChange:
        return MemberChange("joined", self.member)

    async def See(self, request: contract.SeeRequest, context: Any) -> contract.SeeResponse:
        self.seen += request.prompts
        return contract.SeeResponse()

    async def Offload(self, request: contract.OffloadRequest, context: Any) -> contract.OffloadResponse:
        self.tenants.append(request.tenant)
        digests = _cut(request.digests)
        free = range(len(self.held) + 1, len(self.held) + 1 + len(digests))
        source = Source.of(request.address, request.source)
        await self.transports.choose(source).read(source, list(free), list(request.block_ids))
        outcomes: list[Any] = []
        for digest, block_id, found in zip(digests, free, self.memory.digests(list(free)), strict=True):
            is_right = digest == found
            outcomes.append(
                contract.OffloadResponse.OUTCOME_TAKEN if is_right else contract.OffloadResponse.OUTCOME_FAILED
            )
            if is_right:
                self.held[digest] = block_id
                self._tell(KvEvent.KIND_STORED, digest)
        return contract.OffloadResponse(outcomes=outcomes)

    async def Onboard(self, request: contract.OnboardRequest, context: Any) -> AsyncIterator[contract.OnboardUpdate]:
        self.onboards += 1
        self.tenants.append(request.tenant)
        try:
            if self.is_mute:
                await asyncio.Event().wait()
            ids: list[int] = []
            for digest in _cut(request.digests):
                if digest not in self.held:
                    break
                ids.append(self.held[digest])
            source = describe_staging(self.memory, self.transports, "s", 30.0)
            tiers: Any = [self.tier] * len(ids)
            yield contract.OnboardUpdate(start=contract.OnboardStart(source=source, tiers=tiers))
            ready = ids[: self.stalls_after]
            for first in range(0, len(ready), 8):
                blocks = contract.ReadyBlocks(first_block=first, block_ids=ready[first : first + 8])
                yield contract.OnboardUpdate(ready=blocks)
            if self.stalls_after is None:
                yield contract.OnboardUpdate(done=contract.OnboardDone(reason=contract.OnboardDone.REASON_COMPLETE))
            await asyncio.Event().wait()
        finally:
            self.is_ended.set()

    async def KvEvents(self, request: KvEventsRequest, context: Any) -> AsyncIterator[KvEventBatch]:
        told = 0
        yield KvEventBatch(epoch=1, first_seq=1, reset=True)
        while True:
            news, told = self.events[told:], len(self.events)
            if news:
                yield KvEventBatch(epoch=1, first_seq=told - len(news) + 1, events=news)
            await self.changed.wait()
            self.changed.clear()

    def _tell(self, kind: Any, digest: bytes) -> None:
        self.events.append(KvEvent(kind=kind, tier=self.tier, sequence_hashes=digest[:8]))  # pyright: ignore[reportArgumentType]
        self.changed.set()


def _cut(digests: bytes) -> list[bytes]:
    return [digests[at : at + DIGEST_BYTES] for at in range(0, len(digests), DIGEST_BYTES)]


def _any_block(staging_id: str, block_ids: Sequence[int]) -> Sequence[int]:
    return block_ids


@asynccontextmanager
async def fake_offload(layout: common.KvLayout, num_blocks: int = 4096) -> AsyncIterator[FakeOffload]:
    """One on loopback; tell workers of it with `tiers.on_change(fake.joined())`."""
    memory = HostBlockMemory(num_blocks, layout.block_bytes)
    channels, server = ChannelPool(), RpcServer("127.0.0.1")
    copying: set[asyncio.Task[None]] = set()

    def spawn(coroutine: Any) -> "asyncio.Task[None]":
        task = asyncio.create_task(coroutine)
        copying.add(task)
        task.add_done_callback(forget_outcome)
        return task

    fake = FakeOffload(memory, Transports(GrpcTransport(channels, memory, spawn, 5.0)), layout)
    server.add(kv_offload_pb2_grpc.add_KvOffloadServicer_to_server, fake, "armature.v1.KvOffload")
    blocks = BlocksServicer(memory, _any_block)
    server.add(worker_pb2_grpc.add_BlocksServicer_to_server, blocks, "armature.v1.Blocks")
    await server.start()
    fake.address = server.address
    try:
        yield fake
    finally:
        await server.stop(0)
        await channels.close()
