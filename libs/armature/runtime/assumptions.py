"""Tells the kv-index what was sent to workers whose engines publish no KV events, so that all routers assume the same.

What can't be told is dropped and counted: it is a guess about a cache, and the next prompt of its kind tells it again.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping

import grpc
from prometheus_client import Counter

from armature.runtime.channels import ChannelPool
from armature.v1.common_pb2 import Member
from armature.v1.kv_index_pb2 import AssumeRequest
from armature.v1.kv_index_pb2_grpc import KvIndexStub

log = logging.getLogger(__name__)

# Prompts that are told in one message, and for how long they are gathered.
_MOST_TOLD = 256
_GATHER_S = 0.02
_MOST_WAITING = 4096
_TIMEOUT_S = 1.0

_told = Counter("armature_router_assumed_prompts_total", "Prompts sent to workers without KV events.", ["outcome"])


class Assumptions:
    """`members` has the workers' records; `followed` says which kv-index to tell, the one whose changes come back."""

    def __init__(
        self, members: Mapping[str, Member], followed: Callable[[], Member | None], channels: ChannelPool
    ) -> None:
        self._members = members
        self._followed = followed
        self._channels = channels
        self._waiting: deque[AssumeRequest.Routed] = deque(maxlen=_MOST_WAITING)
        self._woken = asyncio.Event()

    def note(self, worker_id: str, packed_hashes: bytes) -> None:
        """A prompt with these blocks was sent to a worker. Beyond what may wait the oldest is dropped."""
        member = self._members.get(worker_id)
        if member is None or not member.worker.lacks_kv_events or not packed_hashes:
            return
        if len(self._waiting) == _MOST_WAITING:
            _told.labels("dropped").inc()
        self._waiting.append(AssumeRequest.Routed(worker_id=worker_id, sequence_hashes=packed_hashes))
        self._woken.set()

    async def run(self) -> None:
        """Tell until cancelled."""
        while True:
            await self._woken.wait()
            # Routers place siblings co-located from what they have placed themselves: nobody waits for this.
            await asyncio.sleep(_GATHER_S)
            self._woken.clear()
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), _MOST_TOLD))]
                _told.labels("told" if await self._tell(batch) else "dropped").inc(len(batch))

    async def _tell(self, batch: list[AssumeRequest.Routed]) -> bool:
        member = self._followed()
        if member is None:
            return False
        try:
            stub = KvIndexStub(self._channels.get(member.address))
            await stub.Assume(AssumeRequest(routed=batch), timeout=_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            log.info("kv-index %s was not told of %d prompts: %s", member.id, len(batch), error.code().name)
            return False
        return True
