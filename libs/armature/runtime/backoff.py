"""How long to wait before the next try, so that many processes that lost the same server don't return in step."""

import random


class Backoff:
    """Doubles from `first_s` to `limit_s`, each wait spread by a quarter up and down."""

    def __init__(self, first_s: float = 0.1, limit_s: float = 1.0, rng: random.Random | None = None) -> None:
        self._first_s = first_s
        self._limit_s = limit_s
        self._rng = rng or random.Random()
        self._next_s = first_s

    def next_s(self) -> float:
        """Seconds to wait now; the next wait will be longer."""
        wait_s = self._next_s
        self._next_s = min(self._limit_s, 2 * wait_s)
        return wait_s * self._rng.uniform(0.75, 1.25)

    def reset(self) -> None:
        """Begin anew: the last try worked."""
        self._next_s = self._first_s
