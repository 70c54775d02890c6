"""How fast a queue drains: the work that is placed from it in a second."""

import math

_MEMORY_S = 30.0
"""What is older counts for little: long enough for dozens of placements, short enough to notice a lost worker."""
_GUESS_S = 5.0
"""The first guess weighs as much as so many seconds of measuring."""


class DrainRate:
    """A moving average over the time in which somebody waited; idle time says nothing of how fast it could go."""

    def __init__(self, guess: float, now_s: float) -> None:
        self._work_s = guess * _GUESS_S
        self._elapsed_s = _GUESS_S
        self._told_s = now_s

    def resume(self, now_s: float) -> None:
        """Somebody waits again after a time without."""
        self._told_s = now_s

    def placed(self, work_s: float, now_s: float) -> None:
        """Work has left the queue for a worker."""
        self._age(now_s)
        self._work_s += work_s

    def at(self, now_s: float) -> float:
        """Seconds of work a second; above 0."""
        self._age(now_s)
        return max(self._work_s / self._elapsed_s, 1e-3)

    def _age(self, now_s: float) -> None:
        passed_s = max(now_s - self._told_s, 0.0)
        self._told_s = now_s
        left = math.exp(-passed_s / _MEMORY_S)
        self._work_s *= left
        self._elapsed_s = self._elapsed_s * left + passed_s
