"""How quickly counters grow, from readings of them. Pure: time comes in as `now_s`."""

from collections import deque
from collections.abc import Mapping

WINDOW_S = 5.0
"""Long enough to be calm, short enough to be now."""


class Rates:
    """Counters by name, of one process. One that has fallen belongs to a new process: all begins anew."""

    def __init__(self) -> None:
        self._readings: deque[tuple[float, Mapping[str, float]]] = deque()

    def take(self, now_s: float, counters: Mapping[str, float]) -> None:
        """A new reading; those that are older than needed are forgotten."""
        readings = self._readings
        if readings and any(counters.get(name, 0.0) < value for name, value in readings[-1][1].items()):
            readings.clear()
        readings.append((now_s, counters))
        while len(readings) > 2 and readings[1][0] <= now_s - WINDOW_S:
            readings.popleft()

    def growth(self, name: str) -> float | None:
        """By how much a counter has grown from the first reading to the last; None: there is only one."""
        if len(self._readings) < 2:
            return None
        return self._readings[-1][1].get(name, 0.0) - self._readings[0][1].get(name, 0.0)

    def per_s(self, name: str) -> float | None:
        """How quickly a counter grows."""
        growth = self.growth(name)
        return None if growth is None else growth / (self._readings[-1][0] - self._readings[0][0])
