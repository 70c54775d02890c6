"""What is still to be sent on a stream, from whichever task it comes."""

import asyncio
from collections.abc import AsyncIterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Outbox(Generic[T]):
    """Things in the order in which they were put, all that is ready in one batch.

    Whoever puts on behalf of a peer awaits `taken` before it hears the peer out: so a peer that does not read is not
    read from.
    """

    def __init__(self) -> None:
        self._ready: list[T] = []
        self._changed = asyncio.Event()
        self._taken = asyncio.Event()
        self._is_complete = False

    def put(self, thing: T) -> None:
        self._ready.append(thing)
        self._taken.clear()
        self._changed.set()

    def complete(self) -> None:
        """Nothing more will be put; `batches` ends."""
        self._is_complete = True
        self._changed.set()

    async def taken(self) -> None:
        """Wait until all that was put is on its way."""
        if self._ready:
            await self._taken.wait()

    async def batches(self) -> AsyncIterator[list[T]]:
        """All that has become ready since the last time, until `complete`."""
        while self._ready or not self._is_complete:
            await self._changed.wait()
            self._changed.clear()
            if self._ready:
                batch, self._ready = self._ready, []
                self._taken.set()
                yield batch
