"""Serves `armature.v1.KvIndex`."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from armature.index.packing import unpack_hashes
from armature.index.prefix_index import PrefixIndex
from armature.runtime.errors import CallerError
from armature.v1 import kv_index_pb2, kv_index_pb2_grpc
from services.kv_index.followers import Followers, copy_of
from services.kv_index.settings import KvIndexSettings


class KvIndexServicer(kv_index_pb2_grpc.KvIndexServicer):
    """Reads the index; others write it."""

    def __init__(self, index: PrefixIndex, followers: Followers, settings: KvIndexSettings) -> None:
        self._index = index
        self._followers = followers
        self._copy_message_blocks = settings.copy_message_blocks
        self._interval_s = settings.update_interval_s

    async def Follow(
        self, request: kv_index_pb2.FollowRequest, context: Any
    ) -> AsyncIterator[kv_index_pb2.IndexUpdate]:
        follower = self._followers.attach()
        try:
            while True:
                if follower.needs_copy:
                    follower.begin_copy()
                    for part in copy_of(self._index, self._copy_message_blocks):
                        yield part
                        if follower.needs_copy:
                            break
                elif update := await follower.take():
                    yield update
                    # What happens meanwhile goes into one message, which costs as much as one change alone.
                    await asyncio.sleep(self._interval_s)
        finally:
            self._followers.detach(follower)

    async def Match(self, request: kv_index_pb2.MatchRequest, context: Any) -> kv_index_pb2.MatchResponse:
        try:
            hashes = unpack_hashes(request.sequence_hashes)
        except ValueError as error:
            raise CallerError(f"sequence_hashes: {error}") from error
        response = kv_index_pb2.MatchResponse(indexed_blocks=self._index.size().blocks)
        for worker_id, blocks in self._index.match(hashes).items():
            response.matches.add(worker_id=worker_id, blocks=blocks, stale=self._index.is_stale(worker_id))
        return response
