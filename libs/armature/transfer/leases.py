"""Leases on staged blocks: who still needs them, and until when. Pure.

A staging is held as long as its call is open; when the call ends, it is put under a lease; when the lease runs out or
the reader says so, it is over. Keys are whatever names a staging.
"""

import heapq


class LeaseTable:
    """Keys with an expiry time each."""

    def __init__(self) -> None:
        self._expiries: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []  # may hold entries that `_expiries` no longer confirms

    def __len__(self) -> int:
        return len(self._expiries)

    def __contains__(self, key: str) -> bool:
        return key in self._expiries

    def grant(self, key: str, until_s: float) -> None:
        """Start a lease, or move its end."""
        self._expiries[key] = until_s
        heapq.heappush(self._heap, (until_s, key))

    def release(self, key: str) -> bool:
        """End a lease early; False if there was none, because it has run out or never was."""
        return self._expiries.pop(key, None) is not None

    def expire(self, now_s: float) -> list[str]:
        """End the leases that have run out, earliest first, and return their keys."""
        expired: list[str] = []
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
