"""Serves `armature.v1.KvIndex`."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from armature.index.packing import unpack_hashes
from armature.runtime.errors import CallerError
from armature.runtime.index_followers import copy_of
from armature.v1 import kv_index_pb2, kv_index_pb2_grpc
from services.kv_index.book import Book
from services.kv_index.settings import KvIndexSettings
from services.kv_index.silent import SilentWorkers
from services.kv_index.sources import Sources


class KvIndexServicer(kv_index_pb2_grpc.KvIndexServicer):
    """Reads the book; `silent` is told what to assume, `sources` whom to hear anew."""

    def __init__(self, book: Book, sources: Sources, silent: SilentWorkers, settings: KvIndexSettings) -> None:
        self._book = book
        self._sources = sources
        self._silent = silent
        self._copy_message_blocks = settings.copy_message_blocks
        self._interval_s = settings.update_interval_s

    async def Follow(
        self, request: kv_index_pb2.FollowRequest, context: Any
    ) -> AsyncIterator[kv_index_pb2.IndexUpdate]:
        follower = self._book.followers.attach()
        try:
            while True:
                if follower.needs_copy:
                    follower.begin_copy()
                    for part in copy_of(self._book.index, self._book.trust, self._copy_message_blocks):
                        yield part
                        if follower.needs_copy:
                            break
                elif update := await follower.take():
                    yield update
                    # What happens meanwhile goes into one message, which costs as much as one change alone.
                    await asyncio.sleep(self._interval_s)
        finally:
            self._book.followers.detach(follower)

    async def Match(self, request: kv_index_pb2.MatchRequest, context: Any) -> kv_index_pb2.MatchResponse:
        index, trust = self._book.index, self._book.trust
        hashes = _hashes(request.sequence_hashes)
        response = kv_index_pb2.MatchResponse(indexed_blocks=index.size().blocks)
        for worker_id, blocks in sorted(index.match(hashes).items(), key=lambda match: -match[1]):
            state = kv_index_pb2.WorkerChange.Kind.ValueType(trust.state(worker_id))
            stale = state != kv_index_pb2.WorkerChange.KIND_EXACT
            response.matches.add(worker_id=worker_id, blocks=blocks, stale=stale, trust=state)
        return response

    async def Assume(self, request: kv_index_pb2.AssumeRequest, context: Any) -> kv_index_pb2.AssumeResponse:
        for routed in request.routed:
            self._silent.assume(routed.worker_id, _hashes(routed.sequence_hashes))
        return kv_index_pb2.AssumeResponse()

    async def Resync(self, request: kv_index_pb2.ResyncRequest, context: Any) -> kv_index_pb2.ResyncResponse:
        return kv_index_pb2.ResyncResponse(begun=self._sources.resync(request.source_id))

    async def GetStats(self, request: kv_index_pb2.IndexStatsRequest, context: Any) -> kv_index_pb2.IndexStats:
        index, trust = self._book.index, self._book.trust
        size = index.size()
        stats = kv_index_pb2.IndexStats(indexed_blocks=size.blocks, size_bytes=size.size_bytes)
        for source_id in index.worker_ids:
            state = kv_index_pb2.WorkerChange.Kind.ValueType(trust.state(source_id))
            stats.sources.add(id=source_id, trust=state, blocks=index.num_blocks(source_id))
        return stats


def _hashes(packed: bytes) -> tuple[int, ...]:
    try:
        return unpack_hashes(packed)
    except ValueError as error:
        raise CallerError(f"sequence_hashes: {error}") from error
