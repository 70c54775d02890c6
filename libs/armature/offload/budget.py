"""What may be written to a tier: disks wear out, and a store that is shared must not be flooded."""

import math


class WriteBudget:
    """A token bucket: `bytes_per_s` on the long run, `burst_bytes` at once. Infinite: no limit."""

    def __init__(self, bytes_per_s: float, burst_bytes: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._burst_bytes = burst_bytes
        self._left_bytes = burst_bytes
        self._updated_s = 0.0

    def spend(self, size_bytes: int, now_s: float) -> bool:
        """Take so much, or take nothing and say no. What is larger than a burst goes when the bucket is full."""
        if math.isinf(self._bytes_per_s):
            return True
        gained = self._bytes_per_s * max(now_s - self._updated_s, 0.0)
        self._left_bytes = min(self._left_bytes + gained, self._burst_bytes)
        self._updated_s = max(now_s, self._updated_s)
        if self._left_bytes < min(size_bytes, self._burst_bytes):
            return False
        self._left_bytes -= size_bytes
        return True
