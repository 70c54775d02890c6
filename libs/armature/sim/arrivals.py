"""When requests come: at the trace's times, or each when an earlier one has ended."""

from collections.abc import Callable

from armature.sim.clock import Clock
from armature.sim.trace import Trace, TraceRequest

Accept = Callable[[TraceRequest, float], None]


class OpenLoop:
    """Clients that ask at the trace's times, whatever becomes of the others."""

    def __init__(self, trace: Trace, clock: Clock, accept: Accept) -> None:
        self._coming = iter(trace.requests)
        self._clock = clock
        self._accept = accept

    def start(self) -> None:
        """Expect the next request; when it is there, the one after it."""
        asked = next(self._coming, None)
        if asked is None:
            return

        def do(now_s: float) -> None:
            self.start()
            self._accept(asked, now_s)

        self._clock.at(asked.arrival_s, do)

    def on_end(self, now_s: float) -> None:
        """A request has ended; nobody has waited for that."""


class ClosedLoop:
    """So many clients that ask again as soon as they are answered; the trace's times don't matter.

    Raises:
        ValueError: there is no client.
    """

    def __init__(self, trace: Trace, clock: Clock, accept: Accept, num_clients: int) -> None:
        if num_clients < 1:
            raise ValueError(f"the concurrency is {num_clients}; it must be at least 1")
        self._coming = iter(trace.requests)
        self._clock = clock
        self._accept = accept
        self._num_clients = num_clients

    def start(self) -> None:
        """All clients ask at once."""
        for _ in range(self._num_clients):
            self.on_end(0.0)

    def on_end(self, now_s: float) -> None:
        """A client has its answer: it asks the next, after all else that happens now."""
        asked = next(self._coming, None)
        if asked is not None:
            self._clock.at(now_s, lambda at_s: self._accept(asked, at_s))
