"""The index: which worker holds which block, in which tier.

It is no tree: a sequence hash names its whole prefix, so a flat map from hash to a bit mask of workers is enough, and
links between blocks (`holders.py`) only make matches faster. It knows nothing of where events come from (`tracker.py`)
and is never wrong about more than it was told.

Invariant: in every tier, a hash in whose mask a worker's bit is set is in that worker's log (`holdings.py`), and no
mask is 0. So a dropped worker leaves no bit behind and its slot can be given to the next one at once. To drop one takes
time proportional to its own blocks, however many others there are.

Memory has a limit. When a store goes beyond it, the blocks leave that were stored or matched the longest ago, a
sixteenth of a tier's at a time; the links that matches make count at the next store. What has left counts as not held
from then on: its removal, told later, is ignored, and a later store is new.
"""

import heapq
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import reduce
from itertools import compress
from operator import or_
from typing import NamedTuple

from armature.index.change import Change, ChangeKind
from armature.index.descent import Ends
from armature.index.holders import Holders
from armature.index.holdings import Holdings
from armature.index.shared import SharedSources
from armature.index.size import IndexSize, estimated_bytes
from armature.index.tiers import LOWER_TIERS, Tier

DEFAULT_LIMIT_BYTES = 4 << 30
"""About 20 million blocks with one holder each: more than the pools of a hundred large machines have."""

_EVICTED_SHARE = 16

# A result is made of dicts made before, by mask and depth: many prompts share a head that many workers hold. They are
# forgotten at this number, or when a slot gets another worker.
_MOST_MADE = 64
_MOST_NAMED_SINGLY = 4

# Bits of a mask are told one by one while they are fewer than one in so many, else by a look at every slot.
_SLOTS_PER_BIT = 12
_BITS = bytes.maketrans(b"01", b"\0\1")


class Reach(NamedTuple):
    """How many blocks from a prompt's start workers can use without a hole."""

    device: dict[str, int]
    """Held in G1, by worker; nobody with none."""
    lower: dict[Tier, dict[str, int]]
    """Held in this tier or one above it: those who come further with it than without, shared sources among them. What
    is behind the device's is to be onboarded, in order."""


class ReachMasks(NamedTuple):
    """A `Reach` as masks by depth, shallowest first; `PrefixIndex.slots` says whose bit is whose."""

    device: Ends
    lower: dict[Tier, Ends]


class _Source:
    """What one worker holds, and its bit."""

    __slots__ = ("bit", "held", "is_stale", "slot")

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.bit = 1 << slot
        self.held: dict[Tier, Holdings] = {}
        self.is_stale = False


class PrefixIndex:
    """Answers how much of a prompt each worker already holds.

    Raises:
        ValueError: `limit_bytes` is not above 0.
    """

    def __init__(self, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        if limit_bytes <= 0:
            raise ValueError(f"limit_bytes is {limit_bytes}; it must be above 0")
        self._limit_bytes = limit_bytes
        self._tiers = {tier: Holders() for tier in Tier}
        self._sources: dict[str, _Source] = {}
        self._shared = SharedSources(self._bit_of)
        self._worker_ids: list[str] = []
        """By slot; empty where a slot is free."""
        self._free_slots: list[int] = []
        self._made: dict[tuple[int, int], dict[str, int]] = {}
        self._holdings = 0
        self._evicted = 0
        self._slots: tuple[str, ...] | None = None

    @property
    def slots(self) -> tuple[str, ...]:
        """Worker by the number of its bit in masks; empty where there is none. The same tuple until that changes."""
        if self._slots is None:
            self._slots = tuple(self._worker_ids)
        return self._slots

    @property
    def worker_ids(self) -> list[str]:
        """Every worker that was heard of and not dropped, oldest first; shared sources among them."""
        return list(self._sources)

    @property
    def attached(self) -> Mapping[str, Sequence[str]]:
        """The workers of every shared source."""
        return self._shared.attached()

    def __contains__(self, worker_id: str) -> bool:
        return worker_id in self._sources

    def add(self, worker_id: str) -> None:
        """Make a worker known that holds nothing yet; known ones stay as they are."""
        self._source(worker_id)

    def apply(self, change: Change) -> None:
        """Make one change; blocks without a tier are in G1."""
        kind, worker_id, tier, hashes, readers = change
        if kind is ChangeKind.STORED:
            self.store(worker_id, hashes, tier or Tier.G1)
        elif kind is ChangeKind.REMOVED:
            self.remove(worker_id, hashes, tier or Tier.G1)
        elif kind is ChangeKind.CLEARED:
            self.clear(worker_id, tier)
        elif kind is ChangeKind.DROPPED:
            self.drop(worker_id)
        elif kind is ChangeKind.ATTACHED:
            self.attach(worker_id, readers)
        else:
            self.mark(worker_id, stale=kind is not ChangeKind.EXACT)

    def attach(self, source_id: str, worker_ids: Collection[str]) -> None:
        """What a source holds in lower tiers counts for these workers from now on, as far as they are known.

        It replaces the workers that it had, and ends when the source is dropped.
        """
        self._source(source_id)
        self._shared.attach(source_id, worker_ids)

    def ignore(self, source_ids: frozenset[str]) -> None:
        """What these hold in lower tiers counts for nobody, themselves included; what others hold counts again."""
        if source_ids != self._shared.ignored:
            self._shared.ignore(source_ids)

    def store(self, worker_id: str, hashes: Iterable[int], tier: Tier = Tier.G1) -> None:
        """Note blocks of a worker, which becomes known if it is not."""
        source, stored = self._source(worker_id), hashes if isinstance(hashes, tuple) else tuple(hashes)
        held, holders = source.held.get(tier), self._tiers[tier]
        if held is None:
            held = source.held[tier] = Holdings(source.bit)
        new = holders.store(source.bit, stored)
        held.stored(stored, new, holders.masks)
        self._holdings += new
        if self._size_bytes() > self._limit_bytes:
            self._evict()

    def remove(self, worker_id: str, hashes: Iterable[int], tier: Tier = Tier.G1) -> None:
        """Forget blocks of a worker; those that it does not hold are ignored."""
        source = self._sources.get(worker_id)
        held = source.held.get(tier) if source else None
        if source is None or held is None:
            return
        holders = self._tiers[tier]
        removed = holders.remove(source.bit, hashes)
        held.removed(removed, holders.masks)
        self._holdings -= removed

    def clear(self, worker_id: str, tier: Tier | None = None) -> None:
        """Forget all blocks of a worker in one tier, or in every tier."""
        source = self._sources.get(worker_id)
        if source is None:
            return
        for cleared in list(source.held) if tier is None else [tier]:
            held = source.held.pop(cleared, None)
            if held is not None:
                holders = self._tiers[cleared]
                holders.clear(source.bit, held.blocks(holders.masks))
                self._holdings -= held.num_blocks

    def drop(self, worker_id: str) -> None:
        """Forget a worker; unknown ones are ignored."""
        self.clear(worker_id)
        source = self._sources.pop(worker_id, None)
        if source is not None:
            self._worker_ids[source.slot] = ""
            self._shared.detach(worker_id)
            self._shared.forget_bits()
            self._made.clear()
            self._slots = None
            heapq.heappush(self._free_slots, source.slot)

    def mark(self, worker_id: str, *, stale: bool) -> None:
        """Note whether events of a worker may be missing."""
        self._source(worker_id).is_stale = stale

    def is_stale(self, worker_id: str) -> bool:
        """Whether a known worker's events may be missing."""
        source = self._sources.get(worker_id)
        return source is not None and source.is_stale

    def match(self, hashes: Sequence[int], tier: Tier = Tier.G1) -> dict[str, int]:
        """How many blocks from a prompt's start each worker holds without a hole; nobody with none. In no order.

        `hashes` are those of the prompt's blocks, from the first.
        """
        return self._depths(self._tiers[tier].match(hashes))

    def reach(self, hashes: Sequence[int]) -> Reach:
        """How far each worker's blocks reach, and how much further when those of lower tiers are counted too.

        Costs no more than `match` while nobody has told of blocks in a lower tier; else a few look-ups for each depth
        at which somebody's blocks end, and one in every tier for each block behind which a lower tier goes on in such
        a place.
        """
        device, lower = self.reach_masks(hashes)
        return Reach(self._depths(device), {tier: self._depths(ends) for tier, ends in lower.items()})

    def reach_masks(self, hashes: Sequence[int]) -> ReachMasks:
        """The same for whoever has a use for masks: names are what takes time where many workers hold a block."""
        upper = [self._tiers[Tier.G1]]
        ends = upper[0].match(hashes)
        reach, reached = ReachMasks(ends, {}), dict(ends)
        for tier in LOWER_TIERS if hashes else ():
            if self._tiers[tier].masks:
                upper.append(self._tiers[tier])
                before, reached = reached, self._shared.deepen(reached, upper, hashes)
                further = [(depth, mask & ~before.get(depth, 0)) for depth, mask in reached.items() if depth]
                gained = sorted([end for end in further if end[1]])
                if gained:
                    reach.lower[tier] = gained
        return reach

    def holdings(self, worker_id: str) -> dict[Tier, "array[int]"]:
        """A copy of what a worker holds, by tier, as unsigned 64-bit integers in no particular order."""
        source = self._sources.get(worker_id)
        if source is None:
            return {}
        return {tier: array("Q", held.blocks(self._tiers[tier].masks)) for tier, held in source.held.items()}

    def num_blocks(self, worker_id: str) -> int:
        """Blocks that a worker holds, over all tiers."""
        source = self._sources.get(worker_id)
        return sum(held.num_blocks for held in source.held.values()) if source else 0

    def size(self) -> IndexSize:
        tiers, stale = self._tiers.values(), sum(source.is_stale for source in self._sources.values())
        blocks, linked = sum(len(tier.masks) for tier in tiers), sum(len(tier.parents) for tier in tiers)
        return IndexSize(len(self._sources), stale, blocks, self._holdings, linked, self._size_bytes(), self._evicted)

    def check(self) -> None:
        """Assert the invariant. For tests; takes time proportional to the index."""
        for tier, holders in self._tiers.items():
            holders.check()
            for source in self._sources.values():
                known = {block for block, mask in holders.masks.items() if mask & source.bit}
                held = source.held.get(tier, Holdings(source.bit))
                assert known == held.blocks(holders.masks), f"masks and logs disagree in {tier.name}"
                assert len(known) == held.num_blocks, f"{len(known)} blocks are counted as {held.num_blocks}"
            used = sum(source.bit for source in self._sources.values())
            assert not any(mask & ~used for mask in holders.masks.values()), "a dropped worker left a bit behind"
        total = sum(map(self.num_blocks, self._sources))
        assert total == self._holdings, f"{total} holdings are counted as {self._holdings}"

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
            self._slots = None
            self._shared.forget_bits()
        return source

    def _reached(self, mask: int, depth: int) -> dict[str, int]:
        """The depth by worker of a mask; not to be changed."""
        made = self._made.get((mask, depth))
        if made is None:
            if len(self._made) >= _MOST_MADE:
                self._made.clear()
            made = self._made[mask, depth] = dict.fromkeys(self._named(mask), depth)
        return made

    def _named(self, mask: int) -> list[str]:
        """The workers of a mask, by slot."""
        worker_ids = self._worker_ids
        if mask.bit_count() * _SLOTS_PER_BIT > mask.bit_length():
            return list(compress(worker_ids, bin(mask)[:1:-1].encode().translate(_BITS)))
        names: list[str] = []
        while mask:
            slot = mask.bit_length() - 1
            names.append(worker_ids[slot])
            mask ^= 1 << slot
        return names[::-1]

    def _depths(self, ends: Ends) -> dict[str, int]:
        """The depth by worker; may share what was made before and is not changed."""
        if not ends:
            return {}
        left = reduce(or_, [mask for _, mask in ends])
        depths: dict[str, int] = {}
        for depth, mask in ends:
            # Those who end here, and with them those who go on, who are the same for all prompts of a common head.
            if mask.bit_count() > _MOST_NAMED_SINGLY:
                reached = self._reached(left, depth)
                depths = depths | reached if depths else reached.copy()
            else:
                depths.update(dict.fromkeys(self._named(mask), depth))
            left ^= mask
        return depths

    def _bit_of(self, worker_id: str) -> int:
        source = self._sources.get(worker_id)
        return source.bit if source else 0

    def _size_bytes(self) -> int:
        blocks = linked = 0
        for tier in self._tiers.values():
            blocks += len(tier.masks)
            linked += len(tier.parents)
        return estimated_bytes(blocks, self._holdings, linked, len(self._worker_ids))

    def _evict(self) -> None:
        tier, holders = max(self._tiers.items(), key=lambda one: len(one[1].masks))
        while self._size_bytes() > self._limit_bytes and holders.masks:
            evicted = holders.evict(len(holders.masks) // _EVICTED_SHARE + 1)
            for mask, number in Counter(mask for _, mask in evicted).items():
                for worker_id in self._named(mask):
                    self._sources[worker_id].held[tier].removed(number, holders.masks)
                self._holdings -= number * mask.bit_count()
                self._evicted += number * mask.bit_count()
