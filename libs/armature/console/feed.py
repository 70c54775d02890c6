"""One live picture for all who watch: drawn once a second while somebody does, not at all while nobody does.

A watcher gets everything first, then changes. One that is too slow for them gets everything again instead of a queue.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, cast

import msgspec

from armature.console.patch import merge_patch
from armature.console.shapes import Cell, CellChange
from armature.console.traffic import Traffic
from armature.runtime.tasks import Spawn

log = logging.getLogger(__name__)

INTERVAL_S = 1.0
MAX_WATCHERS = 16
MAX_PENDING = 4
"""Changes that may wait for a watcher."""

Look = Callable[[], Awaitable[Cell]]
Open = Callable[[], AbstractAsyncContextManager[Look]]
"""Makes what looking takes, and ends it."""


class CrowdedError(Exception):
    """As many watch as may."""


class _Watcher:
    def __init__(self) -> None:
        self.pending: deque[bytes] = deque()
        self.wants_all = True
        self.has_ended = False
        self.news = asyncio.Event()

    def tell(self, change: bytes) -> None:
        if len(self.pending) >= MAX_PENDING:
            self.wants_all = True
        if self.wants_all:
            self.pending.clear()
        else:
            self.pending.append(change)
        self.news.set()


class Feed:
    """`open_` is what looking takes; the traffic of this gateway is told along with what is seen."""

    def __init__(self, open_: Open, traffic: Traffic, spawn: Spawn, *, interval_s: float = INTERVAL_S) -> None:
        self._open = open_
        self._traffic = traffic
        self._spawn = spawn
        self._interval_s = interval_s
        self._watchers: set[_Watcher] = set()
        self._looking: asyncio.Task[None] | None = None
        self._cell: dict[str, Any] | None = None
        """The last that was seen; None while nobody looks."""
        self._told = 0
        """Points of traffic that are told."""
        self._is_closed = False

    @property
    def watchers(self) -> int:
        return len(self._watchers)

    async def watch(self) -> AsyncGenerator[bytes, None]:
        """A `CellNow` as JSON, then a `CellChange` a second, or another `CellNow`, until the feed is closed or fails.

        Raises:
            CrowdedError: too many watch.
        """
        if len(self._watchers) >= MAX_WATCHERS:
            raise CrowdedError
        watcher = _Watcher()
        self._watchers.add(watcher)
        try:
            if self._is_closed:
                return
            if self._cell is not None:
                watcher.news.set()
            elif self._looking is None:
                self._looking = self._spawn(self._look())
            while True:
                await watcher.news.wait()
                watcher.news.clear()
                if watcher.has_ended:
                    return
                if watcher.wants_all:
                    watcher.wants_all = False
                    yield self._everything()
                while watcher.pending:
                    yield watcher.pending.popleft()
        finally:
            self._watchers.discard(watcher)

    def close(self) -> None:
        """Let all watchers go."""
        self._is_closed = True
        self._let_go()

    def _let_go(self) -> None:
        for watcher in self._watchers:
            watcher.has_ended = True
            watcher.news.set()

    async def _look(self) -> None:
        """Until nobody watches."""
        now_s = asyncio.get_running_loop().time
        try:
            async with self._open() as look:
                while self._watchers and not self._is_closed:
                    began_s = now_s()
                    self._tell(cast("dict[str, Any]", msgspec.to_builtins(await look())))
                    await asyncio.sleep(max(0.0, began_s + self._interval_s - now_s()))
        except Exception:  # what members tell is foreign: a picture that can't be drawn must not end the gateway
            log.exception("the cell can't be shown")
        finally:
            # Whoever has come since, or watches in vain, comes again.
            self._looking, self._cell = None, None
            self._let_go()

    def _tell(self, cell: dict[str, Any]) -> None:
        before, self._cell = self._cell, cell
        taken, self._told = self._told, self._traffic.taken
        change = CellChange(patch=merge_patch(before or {}, cell), traffic=self._traffic.since(taken))
        told = msgspec.json.encode(change)
        for watcher in self._watchers:
            watcher.tell(told)

    def _everything(self) -> bytes:
        points = [*self._traffic.points]
        later = self._traffic.taken - self._told
        return msgspec.json.encode({"type": "cell", "cell": self._cell, "traffic": points[: len(points) - later]})
