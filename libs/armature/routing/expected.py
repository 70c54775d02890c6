"""Blocks that workers are about to hold: those of prompts placed a moment ago.

Events tell of a block only once it is computed. Until then siblings of a prompt would see no reason to follow it, and
a burst of them would have the same prefix computed everywhere. Two generations of prompts are remembered; every half
of the time to live the older one is forgotten whole, so an entry lives between half and all of it.
"""

from collections.abc import Sequence

from armature.index.descent import Ends, descend

# A generation is closed early beyond this many blocks (about 100 MB).
_MOST_BLOCKS = 1_000_000


class ExpectedBlocks:
    """Matches prompts against those placed within the last `ttl_s` seconds."""

    def __init__(self, ttl_s: float) -> None:
        self._half_life_s = ttl_s / 2
        self._bits: dict[str, int] = {}
        self._slots: tuple[str, ...] = ()
        self._young: dict[int, int] = {}
        self._old: dict[int, int] = {}
        self._turned_s = 0.0

    def add(self, worker_id: str, hashes: Sequence[int], now_s: float) -> None:
        """Count all blocks of a prompt, from its first, as held by a worker."""
        self._turn(now_s)
        bit = self._bits.get(worker_id)
        if bit is None:
            bit = self._bits[worker_id] = 1 << len(self._slots)
            self._slots += (worker_id,)
        masks, known = self._young, 0
        look_up = masks.get
        # Prompts are entered whole, so behind the first block that no prompt has there is none that another has.
        for block in hashes:
            mask = look_up(block)
            if mask is None:
                break
            if not mask & bit:
                masks[block] = mask | bit
            known += 1
        masks.update(dict.fromkeys(hashes[known:], bit))

    @property
    def slots(self) -> tuple[str, ...]:
        """Worker by the number of its bit in masks; the same tuple until that changes."""
        return self._slots

    def match(self, hashes: Sequence[int], now_s: float) -> Ends:
        """Where runs of expected blocks end, as masks by depth, shallowest first; the deepest of a worker counts."""
        self._turn(now_s)
        young, old = descend(self._young, hashes), descend(self._old, hashes)
        return sorted(young + old) if young and old else young or old

    def forget(self) -> None:
        """Expect nothing of anybody: what is lost is a few seconds of guesses, which is cheaper than to sort them."""
        self._bits.clear()
        self._slots = ()
        self._young, self._old = {}, {}

    def _turn(self, now_s: float) -> None:
        age_s = now_s - self._turned_s
        if age_s >= self._half_life_s or len(self._young) > _MOST_BLOCKS:
            self._old = self._young if age_s < 2 * self._half_life_s else {}
            self._young = {}
            self._turned_s = now_s
