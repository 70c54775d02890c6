"""From masks of workers, as an index has them, to columns of a roster, in a few operations however many there are."""

from collections.abc import Sequence

import numpy as np

from armature.index.descent import Ends
from armature.routing.columns import Floats, Roster

# Bits are looked at one by one while a mask has no more than this; what takes an array operation, takes three.
_FEW = 8


class Seats:
    """Which column of a roster each bit of a mask stands for."""

    def __init__(self, slots: Sequence[str], roster: Roster) -> None:
        self.slots = slots
        """Worker by bit; those that the roster lacks count for nobody."""
        self._beyond = len(roster.worker_ids)
        self._columns = [roster.slots.get(worker_id, self._beyond) for worker_id in slots]
        self._columns_of_bits = np.array(self._columns, np.int64)
        self._mask_bytes = (len(slots) + 7) // 8

    def depths(self, ends: Ends) -> Floats:
        """The depth by column, of `(depth, mask)` in ascending order; 0 for those in no mask."""
        depths, columns = np.zeros(self._beyond + 1), self._columns
        for depth, mask in ends:
            if mask.bit_count() > _FEW:
                packed = np.frombuffer(mask.to_bytes(self._mask_bytes, "little"), np.uint8)
                bits = np.unpackbits(packed, bitorder="little").nonzero()[0]
                depths[self._columns_of_bits[bits]] = depth
                continue
            left = mask
            while left:
                bit = left.bit_length() - 1
                depths[columns[bit]] = depth
                left ^= 1 << bit
        return depths[: self._beyond]
