"""A distribution in bounded memory: how many values fell between neighbouring powers of a base.

Any quantile is told within 2 %, whatever the values are; sketches of equal kind can be added. The idea of logarithmic
buckets is that of DDSketch (Masson, Rim and Lee, 2019).
"""

import math
from collections.abc import Iterable

import numpy as np

_RATIO = 1.04
_LEAST, _MOST = 1e-4, 1e8
_NUM_BUCKETS = int(math.log(_MOST / _LEAST) / math.log(_RATIO)) + 2


class Sketch:
    """Of values of at least 0; all below 0.0001 are told as 0, all above 100 million as that."""

    def __init__(self, values: Iterable[float] = ()) -> None:
        self._counts = np.zeros(_NUM_BUCKETS, dtype=np.int64)
        self.count = 0
        self.total = 0.0
        for value in values:
            self.add(value)

    def add(self, value: float) -> None:
        """Take in a value."""
        bucket = 0 if value < _LEAST else min(int(math.log(value / _LEAST) / math.log(_RATIO)) + 1, _NUM_BUCKETS - 1)
        self._counts[bucket] += 1
        self.count += 1
        self.total += value

    def merge(self, other: "Sketch") -> None:
        """Take in all that another one has."""
        self._counts += other._counts
        self.count += other.count
        self.total += other.total

    @property
    def mean(self) -> float:
        """0 if there are no values."""
        return self.total / self.count if self.count else 0.0

    def quantile(self, share: float) -> float:
        """The value that so large a share does not exceed; 0 if there are none.

        Raises:
            ValueError: it is no share.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"the quantile is {share}; it must be from 0 to 1")
        if not self.count:
            return 0.0
        rank = max(math.ceil(share * self.count), 1)
        bucket = int(np.searchsorted(np.cumsum(self._counts), rank))
        return 0.0 if bucket == 0 else _LEAST * _RATIO ** (bucket - 0.5)
