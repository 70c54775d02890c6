"""How blocks are moved: NIXL where both sides have it, gRPC otherwise."""

import asyncio
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from armature.engines.engine import BlockMemory
from armature.runtime.channels import ChannelPool
from armature.runtime.tasks import Spawn
from armature.transfer.grpc_transport import GrpcTransport
from armature.transfer.nixl_agent import NixlAgent
from armature.transfer.region import Region
from armature.transfer.source import Source
from armature.v1.worker_pb2 import StagingInfo

NIXL = "nixl"
GRPC = "grpc"


class Transport(Protocol):
    """One way to read another worker's blocks."""

    @property
    def name(self) -> str: ...

    def read(self, source: Source, local_ids: Sequence[int], remote_ids: Sequence[int]) -> asyncio.Future[None]:
        """Read remote blocks into local ones, pairwise.

        The future ends when nothing can be written to the local blocks any more, with `ReadError` if not all were
        read. It may never end, so wait for it with a timeout and without cancelling it; whoever stops waiting keeps
        everybody away from the local blocks until it has ended.
        """
        ...


class NixlTransport:
    """Reads blocks out of the other process's memory."""

    name = NIXL

    def __init__(self, agent: NixlAgent) -> None:
        self._agent = agent

    def read(self, source: Source, local_ids: Sequence[int], remote_ids: Sequence[int]) -> asyncio.Future[None]:
        return self._agent.read(source.nixl_metadata, source.region, local_ids, remote_ids)


class Transports:
    """What one worker reads with and what it offers its readers."""

    def __init__(self, plain: GrpcTransport, agent: NixlAgent | None = None) -> None:
        self._plain = plain
        self._agent = agent
        self._nixl = NixlTransport(agent) if agent else None

    @property
    def names(self) -> tuple[str, ...]:
        """What a reader may use here, preferred first."""
        return (NIXL, GRPC) if self._agent else (GRPC,)

    @property
    def nixl_metadata(self) -> bytes:
        return self._agent.metadata if self._agent else b""

    def choose(self, source: Source) -> Transport:
        """The fastest one that both sides have."""
        return self._nixl if self._nixl and source.nixl_metadata else self._plain

    def attending(self) -> AbstractContextManager[None]:
        """Hold this open while somebody may be reading from here."""
        return self._agent.attending() if self._agent else nullcontext()

    async def close(self) -> None:
        if self._agent:
            await self._agent.close()


def describe_staging(memory: BlockMemory, transports: Transports, staging_id: str, lease_s: float) -> StagingInfo:
    """What a reader must know of this process's memory."""
    return StagingInfo(
        nixl_metadata=transports.nixl_metadata,
        base_address=memory.base_address,
        block_bytes=memory.block_bytes,
        num_blocks=memory.num_blocks,
        device_id=memory.device_id,
        memory_kind=memory.memory_kind,
        lease_s=lease_s,
        staging_id=staging_id,
    )


async def open_transports(
    preferred: str,
    memory: BlockMemory,
    *,
    channels: ChannelPool,
    spawn: Spawn,
    host: str,
    read_timeout_s: float,
) -> Transports:
    """Make what `preferred` (`nixl` or `grpc`) needs.

    Raises:
        StartError: NIXL is wanted and can't be had.
    """
    plain = GrpcTransport(channels, memory, spawn, read_timeout_s)
    agent = await NixlAgent.start(Region.of(memory), host=host) if preferred == NIXL else None
    return Transports(plain, agent)
