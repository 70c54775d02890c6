"""How often blocks were seen lately, in a fixed amount of memory.

A count-min sketch of four rows whose counters are halved now and then, so that what was popular once is forgotten
(Einziger, Friedman and Manes, "TinyLFU: A Highly Efficient Cache Admission Policy", 2017, section 3). Digests are
random already, so parts of them choose the counters.
"""

import struct
from collections.abc import Sequence

import numpy as np

_ROWS = struct.Struct("<4I")
_MOST = 15
_SAMPLE = 10
"""Sightings until counters are halved, per counter of a row; the paper's ratio of sample to cache size."""


class FrequencySketch:
    """Never says less than the truth since the last halvings, up to 15; says more by chance.

    Raises:
        ValueError: `num_blocks`, how many different blocks matter, is below 1.
    """

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 1:
            raise ValueError(f"num_blocks is {num_blocks}; it must be at least 1")
        self._width = 1 << max(num_blocks - 1, 15).bit_length()
        self._counters = bytearray(4 * self._width)
        self._left = _SAMPLE * self._width

    def add(self, digests: Sequence[bytes]) -> None:
        """Count one more sighting of each."""
        counters = self._counters
        for digest in digests:
            places = self._places(digest)
            least = min([counters[place] for place in places])
            if least < _MOST:
                # Raising only the lowest counters keeps what others share from growing for nothing.
                for place in places:
                    if counters[place] == least:
                        counters[place] = least + 1
        self._left -= len(digests)
        if self._left <= 0:
            self._left += _SAMPLE * self._width
            halves = np.frombuffer(counters, np.uint8)
            halves >>= 1

    def estimate(self, digest: bytes) -> int:
        """How often the block was seen, 0 to 15."""
        return min([self._counters[place] for place in self._places(digest)])

    def _places(self, digest: bytes) -> tuple[int, int, int, int]:
        one, two, three, four = _ROWS.unpack_from(digest)
        width, mask = self._width, self._width - 1
        return (one & mask, width + (two & mask), 2 * width + (three & mask), 3 * width + (four & mask))
