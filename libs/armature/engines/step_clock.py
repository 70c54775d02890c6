"""Lets time pass as if steps were computed. It sleeps, so that dozens of engines fit on one core.

Lateness never adds up: a step that follows on another begins when that one was due to end, however late the thread woke
up from it and however long the planning took. On a machine that is too slow the engine lags behind; then it does not
sleep at all until it has caught up.
"""

import time
from collections.abc import Callable


class StepClock:
    """When an engine's steps end. `clock` and `sleep` in seconds; used by one thread only."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._ended_s: float | None = None
        self.lag_s = 0.0
        """How far the engine was behind when the last step should have ended; 0: it was on time."""

    def rest(self) -> None:
        """There is nothing to compute: the next step begins when it comes."""
        self._ended_s = None

    def pass_step(self, step_s: float) -> None:
        """Return when a step of this duration has ended."""
        now_s = self._clock()
        self._ended_s = (now_s if self._ended_s is None else self._ended_s) + step_s
        left_s = self._ended_s - now_s
        if left_s > 0:
            self._sleep(left_s)
        self.lag_s = max(-left_s, 0.0)
