"""The index: which worker holds which block, in which tier.

It is no tree: a sequence hash names its whole prefix, so a flat map from hash to a bit mask of workers is enough. It
knows nothing of where events come from (`tracker.py`) and is never wrong about more than it was told.

Invariant: in every tier, a worker's bit is set in the mask of a hash exactly if the hash is among the worker's blocks,
and no mask is 0. So a dropped worker leaves no bit behind and its slot can be given to the next one at once.
"""

import heapq
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from armature.index.change import Change, ChangeKind
from armature.index.descent import descend
from armature.index.tiers import Tier

# A hash of 64 bits and a mask of up to 90 workers as CPython 3.11 objects.
_INT_BYTES = 36


@dataclass(frozen=True, slots=True)
class IndexSize:
    """What an index holds and about what it weighs."""

    workers: int
    stale_workers: int
    blocks: int
    """Distinct blocks, counted once a tier."""
    holdings: int
    """Pairs of block and worker."""
    size_bytes: int
    """Estimated from the sizes of the containers."""


class _Source:
    """What one worker holds, and its bit."""

    __slots__ = ("bit", "blocks", "is_stale", "slot")

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.bit = 1 << slot
        self.blocks: dict[Tier, set[int]] = {}
        self.is_stale = False


class PrefixIndex:
    """Answers how much of a prompt each worker already holds."""

    def __init__(self) -> None:
        self._masks: dict[Tier, dict[int, int]] = {tier: {} for tier in Tier}
        self._sources: dict[str, _Source] = {}
        self._worker_ids: list[str] = []
        """By slot; empty where a slot is free."""
        self._free_slots: list[int] = []

    @property
    def worker_ids(self) -> list[str]:
        """Every worker that was heard of and not dropped, oldest first."""
        return list(self._sources)

    def __contains__(self, worker_id: str) -> bool:
        return worker_id in self._sources

    def add(self, worker_id: str) -> None:
        """Make a worker known that holds nothing yet; known ones stay as they are."""
        self._source(worker_id)

    def apply(self, change: Change) -> None:
        """Make one change; blocks without a tier are in G1."""
        kind, worker_id, tier, hashes = change
        if kind is ChangeKind.STORED:
            self.store(worker_id, hashes, tier or Tier.G1)
        elif kind is ChangeKind.REMOVED:
            self.remove(worker_id, hashes, tier or Tier.G1)
        elif kind is ChangeKind.CLEARED:
            self.clear(worker_id, tier)
        elif kind is ChangeKind.DROPPED:
            self.drop(worker_id)
        else:
            self.mark(worker_id, stale=kind is not ChangeKind.EXACT)

    def store(self, worker_id: str, hashes: Iterable[int], tier: Tier = Tier.G1) -> None:
        source, masks = self._source(worker_id), self._masks[tier]
        known = source.blocks.setdefault(tier, set())
        bit, look_up = source.bit, masks.get
        stored = list(hashes)
        for block in stored:
            mask = look_up(block)
            # Most blocks have one holder: they share its mask instead of owning an equal one.
            masks[block] = bit if mask is None else mask | bit
        known.update(stored)

    def remove(self, worker_id: str, hashes: Iterable[int], tier: Tier = Tier.G1) -> None:
        """Forget blocks of a worker; those that it does not hold are ignored."""
        source = self._sources.get(worker_id)
        known = source.blocks.get(tier) if source else None
        if source is None or known is None:
            return
        removed = list(hashes)
        self._unset(source.bit, removed, tier)
        known.difference_update(removed)

    def clear(self, worker_id: str, tier: Tier | None = None) -> None:
        """Forget all blocks of a worker in one tier, or in every tier."""
        source = self._sources.get(worker_id)
        if source is None:
            return
        for cleared in list(source.blocks) if tier is None else [tier]:
            self._unset(source.bit, source.blocks.pop(cleared, ()), cleared)

    def drop(self, worker_id: str) -> None:
        """Forget a worker; unknown ones are ignored."""
        self.clear(worker_id)
        source = self._sources.pop(worker_id, None)
        if source is not None:
            self._worker_ids[source.slot] = ""
            heapq.heappush(self._free_slots, source.slot)

    def mark(self, worker_id: str, *, stale: bool) -> None:
        """Note whether events of a worker may be missing."""
        self._source(worker_id).is_stale = stale

    def is_stale(self, worker_id: str) -> bool:
        """Whether a known worker's events may be missing."""
        source = self._sources.get(worker_id)
        return source is not None and source.is_stale

    def match(self, hashes: Sequence[int], tier: Tier = Tier.G1) -> dict[str, int]:
        """How many blocks from a prompt's start each worker holds without a hole, longest first; nobody with none.

        `hashes` are those of the prompt's blocks, from the first.
        """
        worker_ids = self._worker_ids
        depths: dict[str, int] = {}
        for depth, ending in reversed(descend(self._masks[tier], hashes)):
            left = ending
            while left:
                lowest = left & -left
                depths[worker_ids[lowest.bit_length() - 1]] = depth
                left ^= lowest
        return depths

    def holdings(self, worker_id: str) -> dict[Tier, "array[int]"]:
        """A copy of what a worker holds, by tier, as unsigned 64-bit integers in no particular order."""
        source = self._sources.get(worker_id)
        return {tier: array("Q", blocks) for tier, blocks in source.blocks.items()} if source else {}

    def num_blocks(self, worker_id: str) -> int:
        """Blocks that a worker holds, over all tiers."""
        source = self._sources.get(worker_id)
        return sum(map(len, source.blocks.values())) if source else 0

    def size(self) -> IndexSize:
        sources = self._sources.values()
        sets = [blocks for source in sources for blocks in source.blocks.values()]
        blocks, holdings = sum(map(len, self._masks.values())), sum(map(len, sets))
        containers = sum([held.__sizeof__() for held in [*self._masks.values(), *sets]])
        # A hash object per pair, and a mask of its own for every block that has a second holder.
        ints = _INT_BYTES * (holdings + min(blocks, holdings - blocks))
        stale = sum(source.is_stale for source in sources)
        return IndexSize(len(self._sources), stale, blocks, holdings, containers + ints)

    def check(self) -> None:
        """Assert the invariant. For tests; takes time proportional to the index."""
        for tier, masks in self._masks.items():
            assert all(masks.values()), f"an empty mask in {tier.name}"
            for source in self._sources.values():
                known = {block for block, mask in masks.items() if mask & source.bit}
                assert known == source.blocks.get(tier, set()), f"masks and blocks disagree in {tier.name}"
            used = sum(source.bit for source in self._sources.values())
            assert not any(mask & ~used for mask in masks.values()), "a dropped worker left a bit behind"

    def _source(self, worker_id: str) -> _Source:
        source = self._sources.get(worker_id)
        if source is None:
            if self._free_slots:
                slot = heapq.heappop(self._free_slots)
                self._worker_ids[slot] = worker_id
            else:
                slot = len(self._worker_ids)
                self._worker_ids.append(worker_id)
            source = self._sources[worker_id] = _Source(slot)
        return source

    def _unset(self, bit: int, hashes: Iterable[int], tier: Tier) -> None:
        masks = self._masks[tier]
        look_up, keep = masks.get, ~bit
        for block in hashes:
            mask = look_up(block)
            if mask is None:
                continue
            if rest := mask & keep:
                masks[block] = rest
            else:
                del masks[block]
