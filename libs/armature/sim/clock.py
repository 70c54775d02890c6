"""Simulated time: things to do, earliest first. Two at the same instant happen in the order of entering."""

import heapq
from collections.abc import Callable

Do = Callable[[float], None]


class Clock:
    """Everything that will happen. Invariant: `now_s` never goes back."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._heap: list[tuple[float, int, Do]] = []
        self._entered = 0

    def at(self, when_s: float, do: Do) -> None:
        """Call `do` with the time when it is there; what is late already happens next."""
        heapq.heappush(self._heap, (max(when_s, self.now_s), self._entered, do))
        self._entered += 1

    def step(self) -> bool:
        """Do the next thing; False if there is none."""
        if not self._heap:
            return False
        self.now_s, _, do = heapq.heappop(self._heap)
        do(self.now_s)
        return True
