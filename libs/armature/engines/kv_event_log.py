"""What a holder of blocks can tell a newcomer: the latest events, and everything it holds. Pure.

Readers keep their own place in the log, so a slow one costs nothing: it falls behind the oldest event that is kept and
is then told everything afresh.
"""

from collections import deque
from collections.abc import Mapping, Sequence

from armature.blocks.events import KvEvent, KvEventKind
from armature.blocks.hashing import BlockDigest
from armature.index.tiers import Tier


class KvEventLog:
    """The last `capacity` events of one epoch, and the digests that are held after them."""

    def __init__(self, capacity: int = 16384) -> None:
        self._events: deque[KvEvent] = deque(maxlen=capacity)
        # In the order of storing, so that a parent stands before its child.
        self._held: dict[Tier, dict[BlockDigest, None]] = {}
        self.next_seq = 1
        """Number of the next event."""

    def append(self, events: Sequence[KvEvent]) -> None:
        """Take events in order.

        Raises:
            ValueError: one is missing or repeated. What readers would be told is then wrong for good.
        """
        for event in events:
            if event.seq != self.next_seq:
                raise ValueError(f"KV event {event.seq} came where {self.next_seq} was expected")
            self.next_seq += 1
            self._events.append(event)
            held = self._held.setdefault(event.tier, {})
            if event.kind is KvEventKind.STORED:
                held.update(dict.fromkeys(event.digests))
            elif event.kind is KvEventKind.REMOVED:
                for digest in event.digests:
                    held.pop(digest, None)
            else:
                held.clear()

    def since(self, seq: int) -> list[KvEvent] | None:
        """The events from number `seq` on; None if some are no longer kept, or none has that number yet."""
        count = self.next_seq - seq
        if not 0 <= count <= len(self._events):
            return None
        return [self._events[index] for index in range(-count, 0)]

    def held(self) -> Mapping[Tier, list[BlockDigest]]:
        """The digests of all blocks that can be found, by tier."""
        return {tier: list(held) for tier, held in self._held.items()}
