"""Blocks that workers are about to hold: those of prompts placed a moment ago.

Events tell of a block only once it is computed. Until then siblings of a prompt would see no reason to follow it, and
a burst of them would have the same prefix computed everywhere. Two generations of prompts are remembered; every half
of the time to live the older one is forgotten whole, so an entry lives between half and all of it.
"""

from collections.abc import Sequence

from armature.index.descent import descend

# A generation is closed early beyond this many blocks (about 100 MB).
_MOST_BLOCKS = 1_000_000


class ExpectedBlocks:
    """Matches prompts against those placed within the last `ttl_s` seconds."""

    def __init__(self, ttl_s: float) -> None:
        self._half_life_s = ttl_s / 2
        self._bits: dict[str, int] = {}
        self._worker_ids: list[str] = []
        self._young: dict[int, int] = {}
        self._old: dict[int, int] = {}
        self._turned_s = 0.0

    def add(self, worker_id: str, hashes: Sequence[int], now_s: float) -> None:
        """Count all blocks of a prompt, from its first, as held by a worker."""
        self._turn(now_s)
        bit = self._bits.get(worker_id)
        if bit is None:
            bit = self._bits[worker_id] = 1 << len(self._worker_ids)
            self._worker_ids.append(worker_id)
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

    def deepen(self, depths: dict[str, int], hashes: Sequence[int], now_s: float) -> bool:
        """Raise `depths` (blocks held from the start, by worker) to what is expected; whether that is more anywhere."""
        self._turn(now_s)
        is_more = False
        for generation in (self._young, self._old):
            for depth, mask in descend(generation, hashes) if generation else ():
                left = mask
                while left:
                    lowest = left & -left
                    worker_id = self._worker_ids[lowest.bit_length() - 1]
                    if depths.get(worker_id, 0) < depth:
                        depths[worker_id] = depth
                        is_more = True
                    left ^= lowest
        return is_more

    def forget(self) -> None:
        """Expect nothing of anybody: what is lost is a few seconds of guesses, which is cheaper than to sort them."""
        self._bits.clear()
        self._worker_ids.clear()
        self._young, self._old = {}, {}

    def _turn(self, now_s: float) -> None:
        age_s = now_s - self._turned_s
        if age_s >= self._half_life_s or len(self._young) > _MOST_BLOCKS:
            self._old = self._young if age_s < 2 * self._half_life_s else {}
            self._young = {}
            self._turned_s = now_s
