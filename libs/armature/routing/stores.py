"""Which kv-offloads keep the most of a prompt, so that workers of other nodes may read it there."""

from collections.abc import Mapping, Sequence

import numpy as np

from armature.index.descent import Ends
from armature.index.prefix_index import PrefixIndex
from armature.index.tiers import LOWER_TIERS, Tier
from armature.routing import columns as at
from armature.routing.columns import Floats, Roster
from armature.routing.snapshot import Kept
from armature.routing.worker import Store

_HOST = (0.0, 0.0)
"""What host memory adds to reading over the network: nothing."""


class Stores:
    """All kv-offloads that there are."""

    def __init__(self) -> None:
        self._stores: dict[str, Store] = {}
        self._slots: Sequence[str] | None = None
        self._bits: dict[bytes, int] = {}
        """Those of all stores whose blocks are alike, as the index had its slots when they were gathered."""

    def __len__(self) -> int:
        return len(self._stores)

    def put(self, store: Store) -> None:
        """One has come, or keeps other blocks now."""
        self._stores[store.store_id] = store
        self._slots = None

    def remove(self, store_id: str) -> None:
        """One is gone; unknown ones are ignored."""
        self._stores.pop(store_id, None)
        self._slots = None

    def keeping(self, index: PrefixIndex, below: Mapping[Tier, Ends], roster: Roster, state: Floats) -> list[Kept]:
        """For each kind of blocks, who keeps the longest run in host memory, and who with each further tier."""
        slots = index.slots
        if slots is not self._slots:
            self._slots, self._bits = slots, self._gather(slots)
        kept: list[Kept] = []
        for fingerprint, mask in self._bits.items():
            first, end = roster.kinds.get(fingerprint, (0, 0))
            deepest = {_deepest(below.get(tier, ()), mask) for tier in LOWER_TIERS if end} - {-1}
            for slot in sorted(deepest):
                at_home = [roster.slots[one] for one in index.attached.get(slots[slot], ()) if one in roster.slots]
                lifts = _lifts(state, at_home)
                depths = _depths(below, 1 << slot, len(lifts))
                if depths[-1]:
                    readers = np.zeros(len(roster.worker_ids), np.bool_)
                    readers[first:end] = True
                    readers[at_home] = False
                    kept.append(Kept(slots[slot], readers, depths, lifts))
        return kept

    def _gather(self, slots: Sequence[str]) -> dict[bytes, int]:
        bits: dict[bytes, int] = {}
        for slot, worker_id in enumerate(slots):
            store = self._stores.get(worker_id)
            if store is not None:
                bits[store.fingerprint] = bits.get(store.fingerprint, 0) | 1 << slot
        return bits


def _deepest(ends: Ends | tuple[()], mask: int) -> int:
    """The first slot of those of a mask that come furthest; -1: none of them comes anywhere."""
    for _, reached in reversed(ends):
        if reached & mask:
            found = reached & mask
            return (found & -found).bit_length() - 1
    return -1


def _depths(below: Mapping[Tier, Ends], bit: int, num_tiers: int) -> list[float]:
    depths, depth = list[float](), 0
    for tier in LOWER_TIERS[:num_tiers]:
        depth = max([depth, *[end for end, mask in below.get(tier, ()) if mask & bit]])
        depths.append(float(depth))
    return depths


def _lifts(state: Floats, at_home: Sequence[int]) -> list[tuple[float, float]]:
    """What tiers add to the network, the fastest first; of those behind one that nobody has measured, nothing."""
    lifts = [_HOST]
    for i in range(1, len(LOWER_TIERS)):
        block_s, latency_s = state[at.BLOCK_ONBOARD_S + i, at_home], state[at.ONBOARD_LATENCY_S + i, at_home]
        measured = np.flatnonzero(block_s)
        if not len(measured):
            break
        best = measured[block_s[measured].argmin()]
        lifts.append((float(block_s[best]), float(latency_s[best])))
    return lifts
