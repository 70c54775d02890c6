"""How often blocks were seen lately, in a fixed amount of memory.

A count-min sketch of four rows whose counters are halved now and then, so that what was popular once is forgotten
(Einziger, Friedman and Manes, "TinyLFU: A Highly Efficient Cache Admission Policy", 2017, section 3). Digests are
random already, so parts of them choose the counters.
"""

import struct
from collections import Counter
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
        self._offsets = np.arange(4, dtype=np.uint32) * self._width
        self._left = _SAMPLE * self._width

    def add(self, digests: Sequence[bytes]) -> None:
        """Count one more sighting of each."""
        counters = np.frombuffer(self._counters, np.uint8)
        times = Counter(digests)
        heads = b"".join([digest[: _ROWS.size] for digest in times])
        places = (np.frombuffer(heads, "<u4").reshape(-1, 4) & (self._width - 1)) + self._offsets
        least = counters[places].min(axis=1)
        # Raising only what is lower keeps what others share from growing for nothing.
        raised = np.minimum(least + np.fromiter(times.values(), np.int64), _MOST).astype(np.uint8)
        np.maximum.at(counters, places, raised[:, None])
        self._left -= len(digests)
        if self._left <= 0:
            self._left += _SAMPLE * self._width
            halves = np.frombuffer(counters, np.uint8)
            halves >>= 1

    def estimate(self, digest: bytes) -> int:
        """How often the block was seen, 0 to 15."""
        one, two, three, four = _ROWS.unpack_from(digest)
        counters, width, mask = self._counters, self._width, self._width - 1
        return min(
            counters[one & mask],
            counters[width + (two & mask)],
            counters[2 * width + (three & mask)],
            counters[3 * width + (four & mask)],
        )
