"""The queue of one model: bands of priority, a floor for whoever has waited longest, and bounds.

It knows nothing of workers: it says who is next, and who has to go. Invariant: a request is in the line from `add` to
`remove`, whatever was tried with it in between.
"""

import math
from collections import OrderedDict
from collections.abc import Iterator

from armature.routing.queueing.band import Band
from armature.routing.queueing.drain_rate import DrainRate
from armature.routing.queueing.settings import QueuePolicy
from armature.routing.queueing.waiting import Waiting, WaitingHeap


class Line:
    """Who waits for a model."""

    def __init__(self, policy: QueuePolicy, rate: DrainRate) -> None:
        self.rate = rate
        self.tried_s = -math.inf
        """When the next ones were last tried."""
        self.is_due = False
        """Whether something has changed since, and they have not been tried again."""
        self.work_s = 0.0
        self._policy = policy
        self._bands: dict[int, Band] = {}
        self._waiting: OrderedDict[int, Waiting] = OrderedDict()
        self._expiring = WaitingHeap()
        self._owed_s = 0.0
        """Work that whoever has waited longest has coming."""

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Waiting]:
        return iter(self._waiting.values())

    @property
    def bands(self) -> dict[int, Band]:
        """Those that somebody waits in."""
        return self._bands

    def add(self, one: Waiting, now_s: float) -> None:
        """A request begins to wait."""
        if not self._waiting:
            self.rate.resume(now_s)
        self._waiting[one.sequence] = one
        self.work_s += one.work.seconds
        self._expiring.push(one.expires_s, one)
        self._bands.setdefault(one.band, Band()).add(one)

    def remove(self, one: Waiting) -> None:
        """A request waits no more, for whatever reason."""
        one.is_waiting = False
        del self._waiting[one.sequence]
        self.work_s = self.work_s - one.work.seconds if self._waiting else 0.0
        self._expiring.has_gone()
        band = self._bands[one.band]
        band.remove(one)
        if not len(band):
            del self._bands[one.band]
        if not self._waiting:
            self._owed_s = 0.0

    # --- who is next

    def pop(self) -> Waiting | None:
        """The next one to try, of the highest band that has any."""
        for priority in sorted(self._bands, reverse=True):
            one = self._bands[priority].pop()
            if one is not None:
                return one
        return None

    def put_back(self, one: Waiting) -> None:
        """It was tried in vain."""
        self._bands[one.band].put_back(one)

    def owed(self) -> Waiting | None:
        """Who has waited longest, if it is to be placed before all others."""
        oldest = next(iter(self), None)
        return oldest if oldest is not None and self._owed_s >= oldest.work.seconds > 0 else None

    def is_not_taken(self, oldest: Waiting) -> None:
        """What is owed can't be given now; it does not pile up."""
        self._owed_s = oldest.work.seconds

    def place(self, one: Waiting, now_s: float, *, is_owed: bool) -> None:
        """A request has found its place."""
        work_s = one.work.seconds
        self._bands[one.band].charge(one)
        self.rate.placed(work_s, now_s)
        self._owed_s += -work_s if is_owed else self._policy.floor * work_s
        self.remove(one)

    # --- who has to go

    def expired(self, now_s: float) -> Iterator[Waiting]:
        """Those that are not worth placing any more. Remove each before asking for the next."""
        while (one := self._expiring.first()) is not None and one.expires_s <= now_s:
            yield one

    @property
    def expires_s(self) -> float:
        """When the next one expires; infinity: nobody waits."""
        first = self._expiring.first()
        return first.expires_s if first else math.inf

    def is_waiting(self, tenant: str) -> bool:
        """Whether any request of this tenant waits."""
        return any(band.work_of(tenant) > 0 for band in self._bands.values())

    def is_full(self, now_s: float) -> bool:
        if len(self._waiting) >= self._policy.max_requests:
            return True
        return self.work_s >= self._policy.max_wait_s * self.rate.at(now_s)

    def victim(self, newcomer: Waiting) -> Waiting | None:
        """Who is worth less than a newcomer: the youngest of the lowest band, of the tenant that has most waiting in
        it. In the newcomer's own band only that of a tenant with more than the newcomer's; None: it is the newcomer
        that has to go."""
        lowest = min(self._bands, default=newcomer.band)
        if lowest > newcomer.band or not self._waiting:
            return None
        band = self._bands[lowest]
        tenant, work_s = band.heaviest()
        if lowest == newcomer.band and work_s <= band.work_of(newcomer.tenant) + newcomer.work.seconds:
            return None
        return band.youngest(tenant)

    def wait_s(self, one: Waiting, now_s: float) -> float:
        """About how long a request that comes now would wait, by how fast the queue drains."""
        ahead_s = sum([band.work_s for priority, band in self._bands.items() if priority > one.band])
        own = self._bands.get(one.band)
        if own is not None:
            ahead_s += own.ahead_s(one, by_size=self._policy.order.is_by_size)
        return ahead_s / self.rate.at(now_s)
