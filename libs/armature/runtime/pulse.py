"""Wakes everybody who waits for news; the news itself is looked up by whoever wakes."""

import asyncio


class Pulse:
    """Look first, then wait: between a look and a wait without an `await` nothing is missed."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._is_awaited = False

    def fire(self) -> None:
        """Wake those who wait now. Nearly free when nobody does."""
        if self._is_awaited:
            self._event.set()
            self._event = asyncio.Event()
            self._is_awaited = False

    async def wait(self) -> None:
        """Return at the next `fire`."""
        self._is_awaited = True
        await self._event.wait()
