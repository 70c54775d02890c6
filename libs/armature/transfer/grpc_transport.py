"""Blocks over gRPC: slower than NIXL, but it works wherever the control messages do."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import grpc

from armature.engines.engine import BlockMemory
from armature.runtime.channels import ChannelPool
from armature.runtime.tasks import Spawn
from armature.transfer.region import ReadError
from armature.transfer.source import Source
from armature.v1.worker_pb2 import BlockData, ReadBlocksRequest
from armature.v1.worker_pb2_grpc import BlocksServicer as BlocksContract
from armature.v1.worker_pb2_grpc import BlocksStub

CHUNK_BYTES = 2 * 1024 * 1024
"""Of one message: large enough that its fixed cost does not show, small enough to keep the shared connection fluid."""


class GrpcTransport:
    """Reads staged blocks with `Blocks.ReadBlocks`."""

    name = "grpc"

    def __init__(self, channels: ChannelPool, memory: BlockMemory, spawn: Spawn, timeout_s: float) -> None:
        self._channels = channels
        self._memory = memory
        self._spawn = spawn
        self._timeout_s = timeout_s

    def read(self, source: Source, local_ids: Sequence[int], remote_ids: Sequence[int]) -> asyncio.Future[None]:
        """See `Transport.read`; the call has a deadline of its own."""
        settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._spawn(self._run(settled, source, local_ids, remote_ids))
        return settled

    async def _run(
        self, settled: asyncio.Future[None], source: Source, local_ids: Sequence[int], remote_ids: Sequence[int]
    ) -> None:
        failure: ReadError | None = ReadError("unavailable", "the worker is stopping")
        try:
            await self._copy(source, local_ids, remote_ids)
            failure = None
        except ReadError as error:
            failure = error
        except grpc.aio.AioRpcError as error:
            reason = "disconnected" if error.code() is grpc.StatusCode.UNAVAILABLE else "transport"
            failure = ReadError(reason, f"{error.code().name}: {error.details()}")
        finally:
            if not settled.done():
                if failure is None:
                    settled.set_result(None)
                else:
                    settled.set_exception(failure)

    async def _copy(self, source: Source, local_ids: Sequence[int], remote_ids: Sequence[int]) -> None:
        stub = BlocksStub(self._channels.get(source.address))
        request = ReadBlocksRequest(staging_id=source.staging_id, block_ids=remote_ids)
        call = stub.ReadBlocks(request, timeout=self._timeout_s)
        block_bytes = self._memory.block_bytes
        written, pending = 0, b""
        try:
            async for message in call:
                pending = pending + message.data if pending else message.data
                whole = len(pending) // block_bytes
                if whole == 0:
                    continue
                if written + whole > len(local_ids):
                    raise ReadError("invalid", "more blocks came than were asked for")
                data, pending = pending[: whole * block_bytes], pending[whole * block_bytes :]
                await asyncio.to_thread(self._memory.write, local_ids[written : written + whole], data)
                written += whole
        finally:
            call.cancel()
        if pending or written < len(local_ids):
            raise ReadError("invalid", f"{written} of {len(local_ids)} blocks came")


class BlocksServicer(BlocksContract):
    """Serves `armature.v1.Blocks`: gives out the bytes of staged blocks, read off the loop.

    Args:
        may_read: returns the block ids if they are staged under the id, or raises what the caller is to be told.
    """

    def __init__(self, memory: BlockMemory, may_read: Callable[[str, Sequence[int]], Sequence[int]]) -> None:
        self._memory = memory
        self._may_read = may_read

    async def ReadBlocks(self, request: ReadBlocksRequest, context: object) -> AsyncIterator[BlockData]:
        async for chunk in read_in_chunks(self._memory, self._may_read(request.staging_id, request.block_ids)):
            yield chunk


async def read_in_chunks(memory: BlockMemory, block_ids: Sequence[int]) -> AsyncIterator[BlockData]:
    """The blocks' bytes in messages of at most `CHUNK_BYTES`, read off the loop."""
    at_once = max(1, CHUNK_BYTES // memory.block_bytes)
    for first in range(0, len(block_ids), at_once):
        data = await asyncio.to_thread(memory.read, block_ids[first : first + at_once])
        for start in range(0, len(data), CHUNK_BYTES):
            yield BlockData(data=data[start : start + CHUNK_BYTES])
