"""Who goes first when a tier needs room. Each order gives a block a number when it is stored or used; the lowest goes.

A number is made anew only when its block is touched, so that a heap can hold all of them.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from armature.offload.copies import Copy
from armature.offload.ledger import Seen
from armature.routing.checks import check_numbers


class Touched(Protocol):
    """A block at the moment at which it was stored or used. What an order does not ask for is not found out."""

    @property
    def seen(self) -> Seen: ...
    @property
    def uses(self) -> int:
        """Times that it was used, this one included, as far as the ledger or the sketch remembers."""
        ...

    @property
    def reuse(self) -> float:
        """How likely it is used again."""
        ...

    @property
    def saved_s(self) -> float:
        """Time that the tier saves whoever uses it: computing it, or reading it from below, less reading it here."""
        ...

    @property
    def inflation(self) -> float:
        """The number of the block that went last."""
        ...

    @property
    def now_s(self) -> float: ...


class Eviction(Protocol):
    """An order."""

    def number(self, touched: Touched) -> float:
        """The lowest goes first; equal ones in the order in which they were touched."""
        ...

    def expires_s(self, touched: Touched) -> float:
        """When the block goes though nobody needs its room; infinite: never."""
        ...


class _NeverExpires:
    def expires_s(self, touched: Touched) -> float:
        return float("inf")


@dataclass(frozen=True, slots=True)
class Lru(_NeverExpires):
    """What was used longest ago."""

    def number(self, touched: Touched) -> float:
        return 0.0


@dataclass(frozen=True, slots=True)
class Lfu(_NeverExpires):
    """What was used least often, as far as is remembered; of equals, what was used longest ago."""

    def number(self, touched: Touched) -> float:
        return touched.uses


@dataclass(frozen=True, slots=True, kw_only=True)
class Ttl:
    """What has least time left: as long as its request said, or `default_s`, from its last use. Then it goes anyway.

    Raises:
        ValueError: the time is not above 0.
    """

    default_s: float = 3600.0

    def __post_init__(self) -> None:
        check_numbers(self, above_zero=("default_s",))

    def number(self, touched: Touched) -> float:
        return self.expires_s(touched)

    def expires_s(self, touched: Touched) -> float:
        return max(touched.seen.keep_until_s, 0.0) or touched.now_s + self.default_s


@dataclass(frozen=True, slots=True)
class Priority(_NeverExpires):
    """What has the lowest priority; of equals, what was used longest ago."""

    def number(self, touched: Touched) -> float:
        return touched.seen.facts.priority


@dataclass(frozen=True, slots=True)
class Cost(_NeverExpires):
    """What is likely to save least: time saved at a use, times how likely it is, above what went last.

    Blocks of one tier are equally large, so size has no part. That numbers start from that of the last victim makes
    old ones fade (Cherkasova, "Improving WWW Proxies Performance with Greedy-Dual-Size-Frequency Caching Policy",
    1998).
    """

    def number(self, touched: Touched) -> float:
        return touched.inflation + max(touched.saved_s, 0.0) * touched.reuse * touched.uses


EVICTIONS: Mapping[str, type[Eviction]] = {"lru": Lru, "lfu": Lfu, "ttl": Ttl, "priority": Priority, "cost": Cost}

_SLACK = 64


class EvictionQueue:
    """Blocks that may go, in order. Entries whose block was touched since, or may not go now, are void."""

    def __init__(self) -> None:
        self._heap: list[tuple[bool, float, int, Copy]] = []

    def push(self, copy: Copy, num_live: int) -> None:
        """Enter a block that may go; of `num_live` there may be entries that are not void."""
        self._tidy(num_live)
        heapq.heappush(self._heap, (not copy.is_above, copy.number, copy.ticket, copy))

    def push_newest(self, copies: Sequence[Copy], num_live: int) -> None:
        """The same for blocks with numbers no lower than any, whose tickets are higher than any and ascend."""
        self._tidy(num_live)
        if any(copy.is_above for copy in copies):
            for copy in copies:
                heapq.heappush(self._heap, (not copy.is_above, copy.number, copy.ticket, copy))
        else:  # behind everything that is there: a heap stays one
            self._heap += [(True, copy.number, copy.ticket, copy) for copy in copies]

    def first(self) -> Copy | None:
        """Who goes next; it stays in the queue until its ticket changes."""
        heap = self._heap
        while heap and not _is_true(heap[0]):
            heapq.heappop(heap)
        return heap[0][3] if heap else None

    def _tidy(self, num_live: int) -> None:
        if len(self._heap) > 2 * num_live + _SLACK:
            self._heap = [entry for entry in self._heap if _is_true(entry)]
            heapq.heapify(self._heap)


def _is_true(entry: tuple[bool, float, int, Copy]) -> bool:
    """Whether a block may go now, at this place in the order; if not, the entry is not needed any more."""
    copy = entry[3]
    if copy.ticket == entry[2]:
        if copy.is_evictable:
            return True
        copy.is_queued = False
    return False
