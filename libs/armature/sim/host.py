"""Host memory of workers (tier G2): where blocks go when a device evicts them, and whence they come back.

Copies to it are made as blocks are evicted and cost no step any time: a copy engine has nothing else to do.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from armature.blocks.events import KvEvent, KvEventKind
from armature.blocks.hashing import BlockDigest


class HostChange(NamedTuple):
    """What came into host memory, and what went for it."""

    stored: Sequence[BlockDigest]
    removed: Sequence[BlockDigest]


class HostTier:
    """One worker's. The least recently used block goes when room is needed; one that is read stays."""

    def __init__(self, num_blocks: int) -> None:
        self._num_blocks = num_blocks
        self._blocks: OrderedDict[BlockDigest, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._blocks)

    def offload(self, events: Iterable[KvEvent]) -> HostChange:
        """Take in what the device has evicted."""
        stored: list[BlockDigest] = []
        for event in events:
            if event.kind is KvEventKind.REMOVED:
                stored += [digest for digest in event.digests if digest not in self._blocks]
                # Devices evict tails before heads, so what comes last is to stay longest.
                self._use(event.digests)
        removed: list[BlockDigest] = []
        while len(self._blocks) > self._num_blocks:
            removed.append(self._blocks.popitem(last=False)[0])
        return HostChange(stored, removed)

    def run(self, digests: Sequence[BlockDigest]) -> int:
        """How many of these, from the first, are here without a hole."""
        for count, digest in enumerate(digests):
            if digest not in self._blocks:
                return count
        return len(digests)

    def read(self, digests: Sequence[BlockDigest]) -> None:
        """These, in the order of a prompt, are of use again: its head stays longest."""
        self._use(reversed(digests))

    def _use(self, digests: Iterable[BlockDigest]) -> None:
        for digest in digests:
            self._blocks[digest] = None
            self._blocks.move_to_end(digest)
