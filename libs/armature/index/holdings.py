"""What one worker holds in one tier, as a log: masks say who holds a block, a log only where to look for a worker's.

A set beside the masks would cost as much time at every store as the masks do, and ten times the memory of a log.
"""

from array import array
from collections.abc import Mapping, Sequence

# A log is written anew when it is longer than twice what is held, and this.
_SHORT = 4096


class Holdings:
    """Every block that the worker holds is in the log; others may be too, and some twice."""

    __slots__ = ("_bit", "_log", "num_blocks")

    def __init__(self, bit: int) -> None:
        self._bit = bit
        self._log = array("Q")
        self.num_blocks = 0
        """How many are held."""

    def stored(self, hashes: Sequence[int], num_new: int, masks: Mapping[int, int]) -> None:
        """Note blocks that are held now, of which some were not before; `masks` say so already."""
        if num_new:
            self._log.extend(array("Q", hashes))
            self.num_blocks += num_new
            self._shorten(masks)

    def removed(self, num_blocks: int, masks: Mapping[int, int]) -> None:
        """Note that so many blocks are held no longer; `masks` say which already."""
        self.num_blocks -= num_blocks
        self._shorten(masks)

    def blocks(self, masks: Mapping[int, int]) -> set[int]:
        """What is held."""
        bit, look_up = self._bit, masks.get
        return {block for block in self._log if look_up(block, 0) & bit}

    def _shorten(self, masks: Mapping[int, int]) -> None:
        if len(self._log) > max(2 * self.num_blocks, _SHORT):
            self._log = array("Q", self.blocks(masks))
