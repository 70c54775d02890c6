"""A kv-offload's store behind a real server, and workers' memories that it reads from and that read from it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from armature.engines.host_memory import HostBlockMemory
from armature.index.tiers import Tier
from armature.kv_store.node_store import NodeStore
from armature.offload.policy import offload_policy_of
from armature.runtime.channels import ChannelPool
from armature.runtime.server import RpcServer
from armature.transfer.grpc_transport import BlocksServicer
from armature.transfer.region import Region
from armature.transfer.source import Source
from armature.transfer.transports import Transports, open_transports
from armature.v1 import kv_offload_pb2 as pb
from armature.v1 import kv_offload_pb2_grpc, worker_pb2_grpc
from armature.v1.common_pb2 import KvLayout
from armature.v1.kv_offload_pb2_grpc import KvOffloadStub
from armature.v1.worker_pb2 import StagingInfo
from services.kv_offload.opening import open_store
from services.kv_offload.servicer import KvOffloadServicer, Opened
from services.kv_offload.settings import KvOffloadSettings
from tests.support.s3 import S3Server

BLOCK_BYTES = 8192
FINGERPRINT = b"fingerprint of v"
LAYOUT = KvLayout(kv_fingerprint=FINGERPRINT, block_bytes=BLOCK_BYTES)

_OUTCOMES = {value: name.removeprefix("OUTCOME_").lower() for name, value in pb.OffloadResponse.Outcome.items()}


def digest(number: int) -> bytes:
    return number.to_bytes(8, "little") * 2


def content(number: int, block_bytes: int = BLOCK_BYTES) -> bytes:
    """What block `number` holds."""
    return (number.to_bytes(8, "little") * (block_bytes // 8))[: block_bytes - 16] + digest(number)


def packed(numbers: Sequence[int]) -> bytes:
    return b"".join(map(digest, numbers))


@dataclass(frozen=True, kw_only=True)
class Tiers:
    """How large a store is, in blocks, and by which policy it goes."""

    host: int = 16
    disk: int = 0
    remote: int = 0
    disk_dir: Path | None = None
    redis: str = ""
    s3: S3Server | None = None
    name: str = "here"
    remote_ttl_s: float = 86400.0
    policy: dict[str, Any] = field(default_factory=dict[str, Any])
    transport: str = "grpc"
    lease_s: float = 30.0
    block_bytes: int = BLOCK_BYTES

    @property
    def layout(self) -> KvLayout:
        return KvLayout(kv_fingerprint=FINGERPRINT, block_bytes=self.block_bytes)


@dataclass
class Node:
    """A running kv-offload without etcd."""

    store: NodeStore
    address: str
    stub: Any
    channels: ChannelPool
    _tasks: asyncio.TaskGroup

    async def has(self, tier: Tier, numbers: Sequence[int]) -> bool:
        """Whether each of these is in that tier."""
        return all(self.store.tiers.spaces[tier].ready(digest(number)) is not None for number in numbers)


@asynccontextmanager
async def node(tiers: Tiers) -> AsyncIterator[Node]:
    """A kv-offload that was told its layout; ends without draining."""
    settings = KvOffloadSettings(
        host_bytes=tiers.host * tiers.block_bytes,
        disk_dir=tiers.disk_dir if tiers.disk else None,
        disk_bytes=max(tiers.disk, 1) * tiers.block_bytes,
        redis=tiers.redis,
        remote_bytes=tiers.remote * tiers.block_bytes,
        remote_ttl_s=tiers.remote_ttl_s,
        **(tiers.s3.settings if tiers.s3 else {}),  # pyright: ignore[reportArgumentType]
        transport=tiers.transport,  # pyright: ignore[reportArgumentType]
        lease_s=tiers.lease_s,
    )
    channels, server = ChannelPool(), RpcServer("127.0.0.1")
    async with asyncio.TaskGroup() as tasks:
        store = await open_store(
            settings, offload_policy_of(tiers.policy), tiers.layout, channels, tasks.create_task, node=tiers.name
        )
        servicer = KvOffloadServicer(epoch=7)
        servicer.opened = Opened(store, tiers.layout)
        server.add(kv_offload_pb2_grpc.add_KvOffloadServicer_to_server, servicer, "armature.v1.KvOffload")
        server.add(worker_pb2_grpc.add_BlocksServicer_to_server, servicer, "armature.v1.Blocks")
        await server.start()
        running = tasks.create_task(store.run())
        try:
            stub = KvOffloadStub(channels.get(server.address))
            yield Node(store, server.address, stub, channels, tasks)
        finally:
            await server.stop(0)
            running.cancel()
            await asyncio.wait({running})
            await store.close()
            await channels.close()


class WorkerMemory:
    """What a kv-offload sees of a worker: a pool of blocks that it may read, and reads into it."""

    def __init__(self, memory: HostBlockMemory, transports: Transports, address: str, kv_offload: Any) -> None:
        self.memory = memory
        self.address = address
        self.transports = transports
        self.stub = kv_offload
        self.layout = KvLayout(kv_fingerprint=FINGERPRINT, block_bytes=memory.block_bytes)

    def hold(self, numbers: Sequence[int]) -> None:
        """Have the content of these in as many blocks from the first on."""
        self.memory.write(
            list(range(len(numbers))), b"".join([content(number, self.memory.block_bytes) for number in numbers])
        )

    async def offload(self, numbers: Sequence[int], **fields: Any) -> list[str]:
        """Offer blocks, the first of the pool; what became of each."""
        return await self.offer(list(map(digest, numbers)), range(len(numbers)), **fields)

    async def offer(self, digests: Sequence[bytes], block_ids: Sequence[int], **fields: Any) -> list[str]:
        """Offer these blocks of the pool; what became of each."""
        region = Region.of(self.memory)
        source = StagingInfo(
            nixl_metadata=self.transports.nixl_metadata, base_address=region.base_address,
            block_bytes=region.block_bytes, num_blocks=region.num_blocks, memory_kind="DRAM", staging_id="s",
        )  # fmt: skip
        request = pb.OffloadRequest(
            layout=self.layout, address=self.address, source=source, digests=b"".join(digests),
            block_ids=block_ids, **fields,
        )  # fmt: skip
        with self.transports.attending():
            response = await self.stub.Offload(request, timeout=20)
        return [_OUTCOMES[one] for one in response.outcomes]

    async def put(self, numbers: Sequence[int], **fields: Any) -> list[str]:
        """Hold blocks and offer them."""
        self.hold(numbers)
        return await self.offload(numbers, **fields)

    async def onboard(self, numbers: Sequence[int], address: str) -> tuple[list[Tier], list[int], str]:
        """Where blocks were, those whose right bytes came, and how the stream ended."""
        call = self.stub.Onboard(pb.OnboardRequest(layout=self.layout, digests=packed(numbers)), timeout=20)
        start = (await call.read()).start
        source, came = Source.of(address, start.source), list[int]()
        update = pb.OnboardUpdate(ready=pb.ReadyBlocks(block_ids=start.block_ids))
        while update.WhichOneof("step") == "ready":
            remote, first = list(update.ready.block_ids), update.ready.first_block
            local = list(range(self.memory.num_blocks - len(remote), self.memory.num_blocks))
            await self.transports.choose(source).read(source, local, remote)
            for number, block_id in zip(numbers[first:], local, strict=False):
                assert bytes(self.memory.view(block_id)) == content(number), "wrong bytes"
                came.append(number)
            update = await call.read()
        call.cancel()
        reason = pb.OnboardDone.Reason.Name(update.done.reason).removeprefix("REASON_").lower()
        return [Tier(tier) for tier in start.tiers], came, reason


@asynccontextmanager
async def worker_memory(
    node: Node | str, transport: str = "grpc", num_blocks: int = 32, block_bytes: int = BLOCK_BYTES
) -> AsyncIterator[WorkerMemory]:
    """A worker's pool that gives out blocks and reads others'; `node` may be the address of one."""
    memory, server, channels = HostBlockMemory(num_blocks, block_bytes), RpcServer("127.0.0.1"), ChannelPool()
    address = node if isinstance(node, str) else node.address
    server.add(
        worker_pb2_grpc.add_BlocksServicer_to_server, BlocksServicer(memory, lambda _, ids: ids), "armature.v1.Blocks"
    )
    async with asyncio.TaskGroup() as tasks:
        transports = await open_transports(
            transport, memory, channels=channels, spawn=tasks.create_task, host="127.0.0.1", read_timeout_s=10
        )
        await server.start()
        try:
            yield WorkerMemory(memory, transports, server.address, KvOffloadStub(channels.get(address)))
        finally:
            await server.stop(0)
            await transports.close()
            await channels.close()
