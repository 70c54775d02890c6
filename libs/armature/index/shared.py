"""Sources whose blocks count for others: what a node's kv-offload holds, every worker of the node can read.

Such a source has a bit of its own in the masks of its tiers; only when somebody asks how far workers reach is a mask of
holders made into one of those who can read from them. So nothing is written anew when workers come and go.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import reduce
from itertools import repeat
from operator import or_

from armature.index.descent import LookUp, go_on
from armature.index.holders import Holders

Masks = Mapping[int, int]
"""Who holds a block, by its sequence hash."""

# Masks of holders along a prompt are few; so many are those of the prompts of some seconds.
_MOST_MASKS = 4096


class SharedSources:
    """Who can read from whom; `bit_of` gives the bit of a worker or source, 0 if it has none."""

    def __init__(self, bit_of: Callable[[str], int]) -> None:
        self._bit_of = bit_of
        self._worker_ids: dict[str, tuple[str, ...]] = {}
        self.ignored: frozenset[str] = frozenset()
        self._readers = _Readers(self._readers_of)

    def attach(self, source_id: str, worker_ids: Collection[str]) -> None:
        """What the source holds counts for these workers, and for nobody else but itself."""
        self._worker_ids[source_id] = tuple(worker_ids)
        self._readers.clear()

    def detach(self, source_id: str) -> None:
        """The source is gone; unknown ones are ignored."""
        self._worker_ids.pop(source_id, None)

    def attached(self) -> Mapping[str, Sequence[str]]:
        """The workers of every shared source."""
        return self._worker_ids

    def ignore(self, source_ids: frozenset[str]) -> None:
        """What these hold counts for nobody, and what others hold counts again."""
        self.ignored = source_ids
        self._readers.clear()

    def forget_bits(self) -> None:
        """Somebody has been given a bit, or has lost one."""
        self._readers.clear()

    def deepen(self, reached: Mapping[int, int], upper: Sequence[Holders], hashes: Sequence[int]) -> dict[int, int]:
        """How far workers reach when the last tier of `upper` is counted too, as masks by depth.

        `upper` are the tiers from the device down; `reached` says how far workers get without the last one.
        """
        readers = self._readers
        left = readers[reduce(or_, [holders.users for holders in upper[1:]])]
        others = {depth: mask & ~left for depth, mask in reached.items() if mask & ~left}
        # Mostly a tier holds a prompt's blocks from the first, or goes on where the tiers above it end.
        own = [(depth, readers[mask]) for depth, mask in upper[-1].match(hashes)]
        starts: dict[int, int] = {}
        for depth, mask in sorted([*reached.items(), *own], reverse=True):
            if mask & left:
                starts[depth] = starts.get(depth, 0) | mask & left
                left &= ~mask
        if left:
            starts[0] = starts.get(0, 0) | left
        # One look-up a block as far as the tier goes by itself; where it ends, others may bridge the gap.
        device, *lower = [holders.masks for holders in upper]
        deepened = go_on(self._usable(lower[-1:]), hashes, starts)
        deepened = go_on(self._usable(lower, device), hashes, deepened)
        for depth, mask in others.items():
            deepened[depth] = deepened.get(depth, 0) | mask
        return deepened

    def _usable(self, lower: Sequence[Masks], device: Masks | None = None) -> LookUp:
        """Looks up who can read blocks from any of these tiers, or has them on the device."""
        readers = self._readers.__getitem__

        def masks_of(blocks: Sequence[int]) -> list[int]:
            parts = [map(readers, map(tier.get, blocks, repeat(0))) for tier in lower]
            if device is not None:
                parts.append(map(device.get, blocks, repeat(0)))
            return list(reduce(lambda one, other: map(or_, one, other), parts))

        return masks_of

    def _readers_of(self, holders: int) -> int:
        found = 0
        for source_id in self.ignored:
            holders &= ~self._bit_of(source_id)
        for source_id, worker_ids in self._worker_ids.items():
            if holders & self._bit_of(source_id):
                for worker_id in worker_ids:
                    found |= self._bit_of(worker_id)
        return holders | found


class _Readers(dict[int, int]):
    """Who can read from the holders of a mask, everybody from himself; made when it is asked for."""

    def __init__(self, make: Callable[[int], int]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, holders: int) -> int:
        if len(self) >= _MOST_MASKS:
            self.clear()
        made = self[holders] = self._make(holders)
        return made
