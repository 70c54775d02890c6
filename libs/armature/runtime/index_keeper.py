"""Keeps snapshots in Redis up to date, in the background and within a share of the process's time."""

import asyncio
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from armature.index.tiers import Tier
from armature.index.tracker import Position
from armature.runtime.index_snapshots import SnapshotStore


class Keepable(Protocol):
    """Who knows workers' entries."""

    def position(self, worker_id: str) -> Position | None:
        """Up to where a worker's entry is true; None: it is unknown, or not worth keeping now."""
        ...

    def holdings(self, worker_id: str) -> "Mapping[Tier, array[int]]": ...


class Keeper:
    """Writes a worker's entry when it has changed, or would expire.

    A round starts every `interval_s`; it takes as long as it must to use no more than `share` of the process's time.
    """

    def __init__(self, store: SnapshotStore, *, interval_s: float, share: float) -> None:
        self._store = store
        self._interval_s = interval_s
        self._share = share
        self._kept: dict[str, tuple[Position, float]] = {}
        """What was written of whom, and when."""

    async def run(
        self, worker_ids: Callable[[], Sequence[str]], keepables: Sequence[Keepable], is_ours: Callable[[], bool]
    ) -> None:
        """Write until cancelled, while it is ours to do: of several kv-indexes one is enough."""
        while True:
            began_s = time.monotonic()
            if is_ours():
                await self._round(worker_ids(), keepables)
            left_s = began_s + self._interval_s - time.monotonic()
            await asyncio.sleep(max(0.0, left_s))

    async def _round(self, worker_ids: Sequence[str], keepables: Sequence[Keepable]) -> None:
        for worker_id in self._kept.keys() - set(worker_ids):
            del self._kept[worker_id]
            await self._store.forget(worker_id)
        for worker_id in worker_ids:
            for keepable in keepables:
                position = keepable.position(worker_id)
                if position is not None and self._is_due(worker_id, position):
                    await self._keep(worker_id, position, keepable.holdings(worker_id))

    def _is_due(self, worker_id: str, position: Position) -> bool:
        kept = self._kept.get(worker_id)
        if kept is None or kept[0] != position:
            return True
        return time.monotonic() - kept[1] > self._store.ttl_s / 2

    async def _keep(self, worker_id: str, position: Position, blocks: "Mapping[Tier, array[int]]") -> None:
        # What others do meanwhile counts, too: a busy process writes less often.
        began_s = time.thread_time()
        if await self._store.save(worker_id, position, blocks):
            self._kept[worker_id] = position, time.monotonic()
        busy_s = time.thread_time() - began_s
        await asyncio.sleep(busy_s * (1 / self._share - 1))
