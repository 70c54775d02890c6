"""One tier's room: which block has which slot, who may have one, and who goes for it.

Invariant: every slot is free or has exactly one copy, and a tenant at its quota never costs another one a block.
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import repeat

from armature.index.tiers import Tier
from armature.offload.admission import All
from armature.offload.copies import Copy, CopyState, Found, Place
from armature.offload.eviction import EvictionQueue, Lru
from armature.offload.policy import TierPolicy, TierShape

_HEADROOM = 1 / 64
_LARGEST_HEADROOM = 1 / 8
_USEFUL_HEADROOM_BYTES = 16 << 20
"""What is kept free is brought and passed on as one: below this each step costs more than its bytes."""
_NEVER_S = float("inf")


class TierSpace:
    """Takes copies in and lets them go; decides nothing but who goes."""

    def __init__(self, tier: Tier, shape: TierShape, policy: TierPolicy) -> None:
        self.tier = tier
        self.shape = shape
        self.policy = policy
        self.inflation = 0.0
        """The number of the block that was evicted last."""
        self.max_pinned = int(policy.pinned_share * shape.num_blocks)
        self.num_pinned = 0
        useful = min(_USEFUL_HEADROOM_BYTES // shape.block_bytes, int(_LARGEST_HEADROOM * shape.num_blocks))
        self.headroom_blocks = max(int(_HEADROOM * shape.num_blocks), useful, 1)
        """Kept free if the next tier looks at what goes. Who brings more at once makes blocks go that it never saw."""
        self.block_s = shape.read_s(1) - shape.read_latency_s
        """Time that one more block in a read takes."""
        # A stack: the slot freed last is the one most likely still in the processor's caches.
        self._free = list(range(shape.num_blocks - 1, -1, -1))
        self._copies: dict[bytes, Copy] = {}
        self._doomed: set[Copy] = set()
        self._held: Counter[str] = Counter()
        self._queue = EvictionQueue()
        self._leaving: dict[Copy, None] = {}
        """Those that were next to go and are offered to the tier below, in order; they go before all others."""
        self._stuck: set[Copy] = set()
        """Of these, the ones that the tier below can't take."""
        self._queues: dict[str, EvictionQueue] = {}
        self._has_quotas = policy.tenant_share < 1 or bool(policy.tenants)
        self.admits_all = isinstance(policy.admission, All)
        """So nobody need be asked."""
        self.is_lru = isinstance(policy.eviction, Lru)
        """So blocks go in the order of their tickets."""
        self._expiries: list[tuple[float, int, Copy]] = []
        self._last_ticket = 0

    def __len__(self) -> int:
        return len(self._copies)

    def __iter__(self) -> Iterator[Copy]:
        """All that can be found, in the order in which they came."""
        return iter(self._copies.values())

    @property
    def free_blocks(self) -> int:
        return len(self._free)

    @property
    def doomed_blocks(self) -> int:
        return len(self._doomed)

    def held_by(self, tenant: str) -> int:
        """Slots that count against a tenant's quota."""
        return self._held[tenant]

    def get(self, digest: bytes) -> Copy | None:
        """The copy, ready or being written."""
        return self._copies.get(digest)

    def ready(self, digest: bytes) -> Copy | None:
        """The copy, if its bytes are there."""
        copy = self._copies.get(digest)
        return copy if copy is not None and copy.state is CopyState.READY else None

    def ready_each(self, digests: Iterable[bytes]) -> list[Copy | None]:
        """For each block what `ready` says."""
        ready, found = CopyState.READY, map(self._copies.get, digests)
        return [copy if copy is not None and copy.state is ready else None for copy in found]

    def ready_of(self, digests: Iterable[bytes]) -> list[Copy]:
        """The copies of those whose bytes are there."""
        return [copy for copy in self.ready_each(digests) if copy is not None]

    def victim(self, tenant: str) -> Copy | None:
        """Who would go for a block of this tenant; None: somebody need not, or nobody can."""
        if self._is_at_quota(tenant):
            return self._queue_of(tenant).first() or self._first_leaving(tenant)
        return None if self._free else self._first_leaving() or self._queue.first()

    def num_free_for(self, tenant: str) -> int:
        """Slots for this tenant without anybody going."""
        free = len(self._free)
        return min(free, max(self._quota(tenant) - self._held[tenant], 0)) if self._has_quotas else free

    def can_take(self, tenant: str) -> bool:
        """Whether there is a slot for this tenant, or a block that may go for it."""
        return self.num_free_for(tenant) > 0 or self.victim(tenant) is not None

    def are_new(self, digests: Sequence[bytes]) -> bool:
        """Whether these are different blocks, none of which is here."""
        return len(set(digests)) == len(digests) and self._copies.keys().isdisjoint(digests)

    @property
    def missing_headroom(self) -> int:
        """How many more blocks should go soon, besides those that are leaving."""
        return self.headroom_blocks - len(self._free) - len(self._leaving)

    @property
    def leaving_blocks(self) -> int:
        """Blocks on their way to the tier below."""
        return len(self._leaving) - len(self._stuck)

    @property
    def room_blocks(self) -> int:
        """How many blocks may come at once without others going that the tier below has not seen.

        0: some are on their way there and will make room.
        """
        if self.leaving_blocks and len(self._free) < self.headroom_blocks:
            return 0
        return max(len(self._free), self.headroom_blocks)

    def start_leaving(self) -> Copy | None:
        """Who goes next, besides those that are leaving: from now on it is one of them, unless it is used again."""
        copy = self._queue.first()
        if copy is not None:
            copy.ticket = -1
            self._leaving[copy] = None
        return copy

    def stop_waiting_for(self, copy: Copy) -> None:
        """A block that is leaving won't get to the tier below."""
        if copy in self._leaving:
            self._stuck.add(copy)

    def is_leaving(self, copy: Copy) -> bool:
        return copy in self._leaving

    def add(self, digest: bytes, tenant: str) -> Copy:
        """Give a block a slot; there is a free one, and the tenant is below its quota."""
        assert digest not in self._copies, "a block is added twice"
        copy = Copy(digest, self._free.pop(), tenant)
        self._copies[digest] = copy
        self._held[tenant] += 1
        return copy

    def restore(self, found: Mapping[int, Found]) -> None:
        """Give blocks the slots that they have already, by slot.

        Raises:
            ValueError: a slot is not one of ours, two have the same block, or somebody has a slot already.
        """
        num_blocks = self.shape.num_blocks
        if self._copies or self._doomed:
            raise ValueError(f"{self.tier.name} is in use: nothing can be restored")
        if len({block.digest for block in found.values()}) < len(found) or not all(
            0 <= slot < num_blocks for slot in found
        ):
            raise ValueError(f"{len(found)} blocks do not lie in {num_blocks} slots, each once")
        self._free = [slot for slot in range(num_blocks - 1, -1, -1) if slot not in found]
        for slot, (digest, tenant) in found.items():
            self._copies[digest] = Copy(digest, slot, tenant)
            self._held[tenant] += 1

    def add_all(self, digests: Sequence[bytes], tenant: str) -> list[Copy]:
        """Give different blocks slots; so many are free for the tenant."""
        assert self._copies.keys().isdisjoint(digests), "a block is added twice"
        first = len(self._free) - len(digests)
        copies = list(map(Copy, digests, reversed(self._free[first:]), repeat(tenant)))
        del self._free[first:]
        self._copies.update(zip(digests, copies, strict=True))
        self._held[tenant] += len(copies)
        return copies

    def touch(self, copy: Copy) -> None:
        """A block is ready, or was used: it goes behind others of its number."""
        if self._leaving:
            self._leaving.pop(copy, None)
            self._stuck.discard(copy)
        self._last_ticket += 1
        copy.ticket = self._last_ticket
        copy.is_queued = False
        self.enqueue(copy)

    def have_come(self, copies: Sequence[Copy]) -> None:
        """The bytes of new blocks are there; for tiers whose blocks go in the order of their tickets."""
        assert self.is_lru, "other orders look at each block"
        first, ready = self._last_ticket + 1, CopyState.READY
        self._last_ticket += len(copies)
        for ticket, copy in enumerate(copies, first):
            copy.ticket, copy.state, copy.is_queued = ticket, ready, True
        self._queue.push_newest(copies, len(self._copies))
        for copy in copies if self._has_quotas else ():
            self._queue_of(copy.tenant).push(copy, self._held[copy.tenant])

    def enqueue(self, copy: Copy) -> None:
        """Let a block be evicted, if nothing else keeps it."""
        if copy.is_queued or not copy.is_evictable or copy in self._leaving:
            return
        copy.is_queued = True
        self._queue.push(copy, len(self._copies))
        if copy.expires_s < _NEVER_S:
            heapq.heappush(self._expiries, (copy.expires_s, copy.ticket, copy))
        if self._has_quotas:
            self._queue_of(copy.tenant).push(copy, self._held[copy.tenant])

    def drop(self, copy: Copy) -> None:
        """Nobody finds this block here any more; its slot is free as soon as nobody reads it."""
        assert self._copies.get(copy.digest) is copy, "a block is dropped twice"
        del self._copies[copy.digest]
        copy.ticket = -1
        self._leaving.pop(copy, None)
        self._stuck.discard(copy)
        self.num_pinned -= copy.is_pinned
        copy.is_pinned = False
        copy.state = CopyState.DOOMED
        self._doomed.add(copy)
        self.settle(copy)

    def settle(self, copy: Copy) -> None:
        """A reader has gone: a doomed block's slot may be free now, another block may be evicted again."""
        if copy.state is CopyState.DOOMED:
            if not copy.readers:
                self._doomed.remove(copy)
                self._free.append(copy.slot)
                self._held[copy.tenant] -= 1
                if not self._held[copy.tenant]:
                    del self._held[copy.tenant]
                    self._queues.pop(copy.tenant, None)
        else:
            self.enqueue(copy)

    def pop_expired(self, now_s: float) -> Copy | None:
        """A block whose time is over and that nothing keeps."""
        while self._expiries and self._expiries[0][0] <= now_s:
            _, ticket, copy = heapq.heappop(self._expiries)
            if copy.ticket == ticket:
                if copy.is_evictable:
                    return copy
                copy.is_queued = False
        return None

    def place(self, copy: Copy) -> Place:
        return Place(self.tier, copy.slot)

    def check(self) -> None:
        """Assert that no slot is lost or in two places. For tests; takes time proportional to the tier."""
        slots = [*self._free, *[copy.slot for copy in self], *[copy.slot for copy in self._doomed]]
        assert sorted(slots) == list(range(self.shape.num_blocks)), f"{self.tier.name}: a slot is lost or used twice"
        held = Counter([copy.tenant for copy in [*self, *self._doomed]])
        assert held == self._held, f"{self.tier.name}: quotas count something else than there is"
        assert all(self._copies[copy.digest] is copy for copy in self._leaving), f"{self.tier.name}: a ghost is leaving"
        assert self._leaving.keys() >= self._stuck, f"{self.tier.name}: what does not leave is waited for"
        assert all(copy.readers for copy in self._doomed), f"{self.tier.name}: an unread block is kept"
        assert self.num_pinned == sum([copy.is_pinned for copy in self])

    def _first_leaving(self, tenant: str | None = None) -> Copy | None:
        leaving = (copy for copy in self._leaving if copy.is_evictable and tenant in (None, copy.tenant))
        return next(leaving, None)

    def _is_at_quota(self, tenant: str) -> bool:
        return self._has_quotas and self._held[tenant] >= self._quota(tenant)

    def _quota(self, tenant: str) -> int:
        return int(self.policy.share_of(tenant) * self.shape.num_blocks)

    def _queue_of(self, tenant: str) -> EvictionQueue:
        queue = self._queues.get(tenant)
        if queue is None:
            queue = self._queues[tenant] = EvictionQueue()
        return queue
