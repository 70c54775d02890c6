"""Blocks in Redis or Valkey, by digest: several nodes may share one, and a node finds its own again after a restart."""

import asyncio
from collections.abc import Mapping, Sequence

from armature.kv_store.lower_store import CHECKSUM_BYTES, Block, LowerStore, Problem, checksum, is_block
from armature.offload.copies import Found
from armature.runtime.redis_client import RedisClient, RedisUnavailableError

_AT_ONCE = 8
"""Of a batch; as many as the client has connections."""
_SCAN_COUNT = 1000
_SLOW_TIMEOUT_S = 5.0
"""For going through all keys, a piece at a time."""


class RedisStore(LowerStore):
    """Blocks of one layout; see `LowerStore`. The values are the bytes, then their checksum."""

    def __init__(self, client: RedisClient, *, namespace: str, layout: bytes, num_blocks: int, ttl_s: float) -> None:
        self._client = client
        self._prefix = f"armature/{namespace}/kv/{layout.hex()}/".encode()
        self._num_blocks = num_blocks
        self._ttl_ms = max(1, int(ttl_s * 1000))
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def write(self, blocks: Sequence[Block]) -> list[Problem | None]:
        return await asyncio.gather(*[self._write(block) for block in blocks])

    async def read(self, blocks: Sequence[Block]) -> list[Problem | None]:
        return await asyncio.gather(*[self._read(block) for block in blocks])

    async def forget(self, digests: Sequence[bytes]) -> None:
        """Those that it can't delete now go when their time is over."""
        for first in range(0, len(digests), _SCAN_COUNT):
            keys = [self._prefix + digest for digest in digests[first : first + _SCAN_COUNT]]
            try:
                await self._client.call("UNLINK", *keys)
            except RedisUnavailableError:
                return

    async def found(self) -> Mapping[int, Found]:
        """What is there of this layout, whoever has put it there (so it is no tenant's); nothing if Redis is away."""
        found: dict[bytes, None] = {}
        cursor = b"0"
        pattern = b"".join([b"\\" + bytes([one]) if one in b"*?[]\\" else bytes([one]) for one in self._prefix]) + b"*"
        try:
            while len(found) < self._num_blocks:
                cursor, keys = await self._client.call(
                    "SCAN", cursor, "MATCH", pattern, "COUNT", _SCAN_COUNT, timeout_s=_SLOW_TIMEOUT_S
                )
                found |= dict.fromkeys(key[len(self._prefix) :] for key in keys)
                if cursor == b"0":
                    break
        except RedisUnavailableError:
            pass
        return dict(enumerate(map(Found, list(found)[: self._num_blocks])))

    async def close(self) -> None:
        await self._client.close()

    async def _write(self, block: Block) -> Problem | None:
        value = b"".join([block.data, checksum(block.data)])
        try:
            async with self._slots:
                await self._client.call("SET", self._prefix + block.digest, value, "PX", self._ttl_ms)
        except RedisUnavailableError:
            return Problem.AWAY
        return None

    async def _read(self, block: Block) -> Problem | None:
        try:
            async with self._slots:
                value: bytes | None = await self._client.call("GET", self._prefix + block.digest)
        except RedisUnavailableError:
            return Problem.AWAY
        if value is None:
            return Problem.MISSING
        data, check = memoryview(value)[:-CHECKSUM_BYTES], value[-CHECKSUM_BYTES:]
        if len(data) != len(block.data) or checksum(data) != check or not is_block(block.digest, data):
            return Problem.DAMAGED
        block.data[:] = data
        return None
