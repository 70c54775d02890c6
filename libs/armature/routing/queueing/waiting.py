"""A request in the queue, and heaps of such that may leave from the middle."""

import heapq
from typing import NamedTuple

from armature.routing.decision import Query


class Work(NamedTuple):
    """What computing a prompt takes where it takes least."""

    seconds: float
    tokens: int
    """Those that no worker has cached, or that are cached where more would have to be computed."""


class Waiting:
    """One request and what was known of it when it came; none of that changes while it waits."""

    __slots__ = ("arrival_s", "band", "expires_s", "is_waiting", "key", "query", "sequence", "tenant", "work")

    def __init__(self, query: Query, work: Work, arrival_s: float, sequence: int) -> None:
        self.query = query
        self.work = work
        self.arrival_s = arrival_s
        self.sequence = sequence
        """Unique in its queue, in order of arrival."""
        self.band = 0
        """Higher goes first."""
        self.tenant = ""
        self.key = arrival_s
        """Lower goes first, within tenant and band."""
        self.expires_s = arrival_s
        """Not worth placing any more from then on."""
        self.is_waiting = True


class WaitingHeap:
    """Waiting requests, the lowest key first, equals in order of arrival.

    A request that leaves from the middle is skipped when it comes up. Memory stays within twice those that wait.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Waiting]] = []
        self._gone = 0

    def push(self, key: float, one: Waiting) -> None:
        heapq.heappush(self._heap, (key, one.sequence, one))

    def first(self) -> Waiting | None:
        """The one with the lowest key; it stays."""
        heap = self._heap
        while heap and not heap[0][2].is_waiting:
            heapq.heappop(heap)
            self._gone -= 1
        return heap[0][2] if heap else None

    def pop(self) -> None:
        """Take out what `first` has returned."""
        heapq.heappop(self._heap)

    def has_gone(self) -> None:
        """One that was pushed waits no more."""
        self._gone += 1
        if self._gone > 16 and 2 * self._gone > len(self._heap):
            self._heap = [item for item in self._heap if item[2].is_waiting]
            heapq.heapify(self._heap)
            self._gone = 0
