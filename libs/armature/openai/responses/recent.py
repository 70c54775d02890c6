"""Values in this process's memory for a while: the newest of them, as many bytes as there is room for."""

from collections import OrderedDict
from dataclasses import dataclass

ENTRY_BYTES = 256
"""What an entry takes besides its key and value."""


@dataclass(frozen=True, slots=True)
class _Entry:
    value: bytes
    expires_s: float


class Recent:
    """Forgets what was not used for `ttl_s`, and what was used longest ago when `max_bytes` are full."""

    def __init__(self, max_bytes: int, ttl_s: float) -> None:
        self._max_bytes = max_bytes
        self._ttl_s = ttl_s
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        """The one used longest ago first, which is the one that expires first."""
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, key: str, value: bytes, now_s: float) -> bool:
        """Keep a value; False: it is larger than all the room there is."""
        self.remove(key)
        size_bytes = _size_bytes(key, value)
        if size_bytes > self._max_bytes:
            return False
        self.size_bytes += size_bytes
        self._entries[key] = _Entry(value, now_s + self._ttl_s)
        while self.size_bytes > self._max_bytes or self._is_expired(next(iter(self._entries)), now_s):
            self.remove(next(iter(self._entries)))
        return True

    def get(self, key: str, now_s: float) -> bytes | None:
        """The value, which is kept for its time again."""
        if key not in self._entries or self._is_expired(key, now_s):
            self.remove(key)
            return None
        value = self._entries[key].value
        self._entries[key] = _Entry(value, now_s + self._ttl_s)
        self._entries.move_to_end(key)
        return value

    def remove(self, key: str) -> bool:
        """Whether it was there."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.size_bytes -= _size_bytes(key, entry.value)
        return entry is not None

    def _is_expired(self, key: str, now_s: float) -> bool:
        return self._entries[key].expires_s <= now_s


def _size_bytes(key: str, value: bytes) -> int:
    return len(key) + len(value) + ENTRY_BYTES
