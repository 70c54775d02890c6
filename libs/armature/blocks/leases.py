"""Leases: who still needs blocks, and until when.

A lease is over when its holder says so or when it runs out, whatever comes first. Keys are whatever names a holder.
"""

import heapq
from typing import Generic, TypeVar

Key = TypeVar("Key", str, int, bytes)


class LeaseTable(Generic[Key]):
    """Keys with an expiry time each."""

    def __init__(self) -> None:
        self._expiries: dict[Key, float] = {}
        self._heap: list[tuple[float, Key]] = []  # may hold entries that `_expiries` no longer confirms

    def __len__(self) -> int:
        return len(self._expiries)

    def __contains__(self, key: Key) -> bool:
        return key in self._expiries

    def grant(self, key: Key, until_s: float) -> None:
        """Start a lease, or move its end."""
        self._expiries[key] = until_s
        heapq.heappush(self._heap, (until_s, key))

    def release(self, key: Key) -> bool:
        """End a lease early; False if there was none, because it has run out or never was."""
        return self._expiries.pop(key, None) is not None

    def expire(self, now_s: float) -> list[Key]:
        """End the leases that have run out, earliest first, and return their keys."""
        expired: list[Key] = []
        while (next_s := self.next_expiry_s()) is not None and next_s <= now_s:
            _, key = heapq.heappop(self._heap)
            del self._expiries[key]
            expired.append(key)
        return expired

    def next_expiry_s(self) -> float | None:
        """When to call `expire` next; None while nothing is leased."""
        while self._heap and self._expiries.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None
