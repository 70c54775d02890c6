"""Snapshots of the index in Redis, one key per worker, so that only what has changed is written.

Several may write: each builds a snapshot under a name of its own and puts it in place at once, so a reader finds a
whole one. One that is read while it is replaced is refused like any other that is damaged.
"""

import asyncio
import contextlib
import logging
from array import array
from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client import Counter

from armature.index.snapshot import Head, PartHead, SnapshotError, decode_head, decode_part, encode_head, parts_of
from armature.index.tiers import Tier
from armature.index.tracker import Position
from armature.runtime.redis_client import Command, RedisClient, RedisUnavailableError

log = logging.getLogger(__name__)

PART_BLOCKS = 16384
"""128 KiB a message."""
# Snapshots that are read at the same time; each takes memory until it is in the index.
_MOST_READS = 4

_saved = Counter("armature_kv_index_snapshots_total", "Workers' entries written to Redis.", ["outcome"])
_saved_bytes = Counter("armature_kv_index_snapshot_bytes_total", "Bytes of entries written to Redis.")
_recovered = Counter(
    "armature_kv_index_recoveries_total",
    "Workers looked up in Redis: restored, absent, unavailable, or why the snapshot was refused.",
    ["outcome"],
)


@dataclass(frozen=True, slots=True)
class Restored:
    """What a snapshot says: true up to `position` of the worker's stream."""

    position: Position
    blocks: list[tuple[Tier, list[int]]]


class SnapshotStore:
    """The snapshots of one cell. Nothing is ever raised for Redis being away: there are none then."""

    def __init__(self, redis: RedisClient, namespace: str, writer_id: str, *, ttl_s: float) -> None:
        self._redis = redis
        self._prefix = f"armature:{namespace}:kv-index"
        self._writer_id = writer_id
        self.ttl_s = ttl_s
        self._ttl_ms = round(ttl_s * 1000)
        self._reads = asyncio.Semaphore(_MOST_READS)

    async def save(self, worker_id: str, position: Position, blocks: "Mapping[Tier, array[int]]") -> bool:
        """Write a worker's entry; whether that worked."""
        key, draft = self._key(worker_id), f"{self._key(worker_id)}:{self._writer_id}"
        expire: Command = ("PEXPIRE", draft, self._ttl_ms)
        commands: list[Command] = [("DEL", draft)]
        heads, size_bytes = list[PartHead](), 0
        try:
            for number, (head, part) in enumerate(parts_of(blocks, PART_BLOCKS)):
                if number:  # one part a message
                    await self._redis.call_all(commands)
                    commands = []
                commands += [("HSET", draft, str(number), part), expire]
                heads.append(head)
                size_bytes += len(part)
            whole = encode_head(Head(worker_id, position, tuple(heads)))
            # What expires is renamed with its time to live.
            await self._redis.call_all([*commands, ("HSET", draft, "head", whole), expire, ("RENAME", draft, key)])
        except RedisUnavailableError:
            _saved.labels("failed").inc()
            return False
        _saved.labels("saved").inc()
        _saved_bytes.inc(size_bytes + len(whole))
        return True

    async def load(self, worker_id: str, epoch: int) -> Restored | None:
        """What was last written of a worker in this epoch; None if that is nothing, or nothing of use."""
        async with self._reads:
            try:
                restored = await self._load(worker_id, epoch)
            except RedisUnavailableError:
                _recovered.labels("unavailable").inc()
                return None
            except SnapshotError as error:
                log.warning("the snapshot of %s is refused: %s", worker_id, error)
                _recovered.labels(error.reason).inc()
                return None
        _recovered.labels("restored" if restored else "absent").inc()
        return restored

    async def forget(self, worker_id: str) -> None:
        """A worker is gone. If Redis is away, its snapshot expires."""
        with contextlib.suppress(RedisUnavailableError):
            await self._redis.call("UNLINK", self._key(worker_id))

    async def _load(self, worker_id: str, epoch: int) -> Restored | None:
        key = self._key(worker_id)
        whole: bytes | None
        found: bytes | None
        # Most have one part.
        whole, found = await self._redis.call("HMGET", key, "head", "0")
        if whole is None:
            return None
        head = decode_head(whole, worker_id, epoch)
        blocks: list[tuple[Tier, list[int]]] = []
        for number, part in enumerate(head.parts):
            if number:
                found = await self._redis.call("HGET", key, str(number))
            blocks.append((part.tier, decode_part(part, found)))
        return Restored(head.position, blocks)

    def _key(self, worker_id: str) -> str:
        return f"{self._prefix}:{worker_id}"
