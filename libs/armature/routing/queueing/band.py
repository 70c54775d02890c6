"""Waiting requests of one priority: tenants take turns, by the work that was placed for them.

Start-time fair queueing (Goyal, Vin and Cheng 1996): a tenant has a clock that runs on by the work placed for it, and
the one whose clock is furthest behind is next. Two tenants that both have requests waiting differ in what is placed for
them by at most the largest request of each. A tenant that comes anew starts where the others are: having been absent
earns nothing.
"""

import heapq
import math
from collections import OrderedDict

from armature.routing.queueing.waiting import Waiting, WaitingHeap


class _Tenant:
    __slots__ = ("by_size", "clock_s", "heap", "is_listed", "name", "waiting", "work_s")

    def __init__(self, name: str, clock_s: float) -> None:
        self.name = name
        self.clock_s = clock_s
        self.heap = WaitingHeap()
        self.is_listed = False
        """Whether it is among those that take turns."""
        self.waiting: OrderedDict[int, Waiting] = OrderedDict()
        """All of them, also those that are not in the heap because they are being tried; oldest first."""
        self.work_s = 0.0
        self.by_size: dict[int, float] = {}
        """Their work, by its binary order of magnitude."""


class Band:
    """Requests of one priority. With one tenant, it is just its order."""

    def __init__(self) -> None:
        self._tenants: dict[str, _Tenant] = {}
        self._turns: list[tuple[float, str]] = []
        """Clocks of tenants that have requests in their heaps; a clock that has run on since is corrected in time."""
        self._idle: list[tuple[float, str]] = []
        """Clocks of tenants without requests, ahead of the band's: to be forgotten when that has caught up."""
        self._heaviest: list[tuple[float, str]] = []
        """Negative work of tenants, with outdated entries among it."""
        self._clock_s = 0.0
        self._size = 0
        self.work_s = 0.0

    def __len__(self) -> int:
        return self._size

    def add(self, one: Waiting) -> None:
        """A request begins to wait."""
        tenant = self._tenants.get(one.tenant)
        if tenant is None:
            tenant = self._tenants[one.tenant] = _Tenant(one.tenant, self._clock_s)
        elif not tenant.waiting:
            tenant.clock_s = max(tenant.clock_s, self._clock_s)
        tenant.waiting[one.sequence] = one
        self._size += 1
        self._weigh(tenant, one, 1)
        self.put_back(one)

    def pop(self) -> Waiting | None:
        """The next one to try. It goes on waiting until `remove`; `put_back` has it tried again."""
        while self._turns:
            clock_s, name = self._turns[0]
            tenant = self._tenants[name]
            if tenant.clock_s > clock_s:
                heapq.heapreplace(self._turns, (tenant.clock_s, name))
                continue
            one = tenant.heap.first()
            if one is not None:
                tenant.heap.pop()
                return one
            heapq.heappop(self._turns)
            tenant.is_listed = False
            self._forget(tenant)
        return None

    def put_back(self, one: Waiting) -> None:
        """A request that was tried in vain keeps its place."""
        tenant = self._tenants[one.tenant]
        tenant.heap.push(one.key, one)
        if not tenant.is_listed:
            tenant.is_listed = True
            heapq.heappush(self._turns, (tenant.clock_s, tenant.name))

    def charge(self, one: Waiting) -> None:
        """A waiting request is placed: its tenant's clock runs on."""
        tenant = self._tenants[one.tenant]
        furthest_behind_s = self._turns[0][0] if self._turns else math.inf
        self._clock_s = max(self._clock_s, min(tenant.clock_s, furthest_behind_s))
        tenant.clock_s += one.work.seconds

    def remove(self, one: Waiting) -> None:
        """A request waits no more; `is_waiting` tells so already."""
        tenant = self._tenants[one.tenant]
        del tenant.waiting[one.sequence]
        self._size -= 1
        tenant.heap.has_gone()
        self._weigh(tenant, one, -1)
        self._forget(tenant)

    def heaviest(self) -> tuple[str, float]:
        """The tenant with most work waiting, and how much that is. There must be one."""
        heap = self._heaviest
        while True:
            weight_s, name = heap[0]
            tenant = self._tenants.get(name)
            if tenant is not None and tenant.waiting and tenant.work_s == -weight_s:
                return name, tenant.work_s
            heapq.heappop(heap)

    def youngest(self, tenant: str) -> Waiting:
        """A tenant's latest request; it must have one."""
        waiting = self._tenants[tenant].waiting
        return waiting[next(reversed(waiting))]

    def work_of(self, tenant: str) -> float:
        """Seconds of work that a tenant has waiting."""
        known = self._tenants.get(tenant)
        return known.work_s if known else 0.0

    def ahead_s(self, one: Waiting, *, by_size: bool) -> float:
        """About how much work goes before a request that comes now: its tenant's, and as much of each other one's."""
        tenant = self._tenants.get(one.tenant)
        if tenant is None:
            own_s = 0.0
        elif not by_size:
            own_s = tenant.work_s
        else:
            size = _size(one)
            own_s = sum([work_s for other, work_s in tenant.by_size.items() if other <= size])
        taking_turns = len(self._turns) + (tenant is None or not tenant.is_listed)
        return min(taking_turns * own_s + (taking_turns - 1) * one.work.seconds, self.work_s)

    def _weigh(self, tenant: _Tenant, one: Waiting, sign: int) -> None:
        work_s, size = sign * one.work.seconds, _size(one)
        self.work_s += work_s
        if tenant.waiting:
            tenant.work_s += work_s
            tenant.by_size[size] = tenant.by_size.get(size, 0.0) + work_s
        else:  # sums of floating-point numbers drift; of nothing they are nothing
            tenant.work_s = 0.0
            tenant.by_size.clear()
        heapq.heappush(self._heaviest, (-tenant.work_s, tenant.name))
        if len(self._heaviest) > 4 * len(self._tenants) + 64:
            self._heaviest = [(-one.work_s, one.name) for one in self._tenants.values()]
            heapq.heapify(self._heaviest)

    def _forget(self, tenant: _Tenant) -> None:
        """Drop tenants that have nothing waiting and whose clock says nothing any more."""
        if not tenant.waiting and not tenant.is_listed:
            heapq.heappush(self._idle, (tenant.clock_s, tenant.name))
        while self._idle and self._idle[0][0] <= self._clock_s:
            _, name = heapq.heappop(self._idle)
            idle = self._tenants.get(name)
            if idle and not idle.waiting and not idle.is_listed and idle.clock_s <= self._clock_s:
                del self._tenants[name]


def _size(one: Waiting) -> int:
    return math.frexp(one.work.seconds)[1]
