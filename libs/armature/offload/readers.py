"""Who reads or pins blocks, and until when. What is read stays where it is, whatever else happens."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from armature.blocks.leases import LeaseTable
from armature.offload.copies import Copy, Place
from armature.offload.space import TierSpace
from armature.offload.tiers import Tiers


class Lease(NamedTuple):
    """Blocks from a prompt's start that stay where they are until the lease ends."""

    lease_id: int
    """0: there is none."""
    places: Sequence[Place]


class Readers:
    """Leases and pins on the blocks of all tiers."""

    def __init__(self, tiers: Tiers) -> None:
        self._tiers = tiers
        self._leases: dict[int, list[tuple[TierSpace, Copy]]] = {}
        self._lease_ends: LeaseTable[int] = LeaseTable()
        self._pins: dict[bytes, TierSpace] = {}
        self._pin_ends: LeaseTable[bytes] = LeaseTable()
        self._last_id = 0

    def __len__(self) -> int:
        """Leases that have not ended."""
        return len(self._leases)

    def lease(self, digests: Sequence[bytes], now_s: float, ttl_s: float) -> Lease:
        """Keep the blocks of a prompt, up to the first that is nowhere, where they are now, for reading.

        Copies of those below the fastest tier to that tier are wanted; `update` tells how far they are.
        """
        top = self._tiers.top
        held: list[tuple[TierSpace, Copy]] = []
        for digest in digests:
            best = self._tiers.best(digest)
            if best is None:
                break
            best[1].readers += 1
            held.append(best)
        if not held:
            return Lease(0, ())
        for space, copy in reversed(held):
            if space is not top:
                self._tiers.cascade.want(copy.digest, top.tier, copy.tenant, is_urgent=True)
        self._last_id += 1
        self._leases[self._last_id] = held
        self._lease_ends.grant(self._last_id, now_s + ttl_s)
        return Lease(self._last_id, [space.place(copy) for space, copy in held])

    def update(self, lease_id: int) -> Lease:
        """The same blocks, each in the fastest tier that has it now; one that is damaged ends the run before it."""
        held = self._leases.get(lease_id)
        if held is None:
            return Lease(0, ())
        for i, (space, copy) in enumerate(held):
            best = self._tiers.best(copy.digest)
            if best is None:
                for one_space, one in held[i:]:
                    self._tiers.unread(one_space, one)
                del held[i:]
                break
            if best[1] is not copy:
                best[1].readers += 1
                self._tiers.unread(space, copy)
                held[i] = best
        return Lease(lease_id, [space.place(copy) for space, copy in held])

    def release(self, lease_id: int) -> bool:
        """The blocks were read, or need not be; False: there is no such lease."""
        held = self._leases.pop(lease_id, None)
        if held is None:
            return False
        self._lease_ends.release(lease_id)
        for space, copy in held:
            self._tiers.unread(space, copy)
        return True

    def pin(self, digests: Sequence[bytes], until_s: float) -> int:
        """Keep blocks from being evicted, each where it is fastest; how many are pinned. Tiers set limits to that."""
        pinned = 0
        for digest in digests:
            best = self._tiers.best(digest)
            if self._pinned(digest) is None:
                if best is None or best[0].num_pinned >= best[0].max_pinned:
                    continue
                space, copy = best
                copy.is_pinned = True
                space.num_pinned += 1
                self._pins[digest] = space
            self._pin_ends.grant(digest, until_s)
            pinned += 1
        return pinned

    def unpin(self, digests: Sequence[bytes]) -> None:
        """Let blocks be evicted again."""
        for digest in digests:
            copy = self._pinned(digest)
            space = self._pins.pop(digest, None)
            self._pin_ends.release(digest)
            if space is not None and copy is not None:
                copy.is_pinned = False
                space.num_pinned -= 1
                space.enqueue(copy)

    def _pinned(self, digest: bytes) -> Copy | None:
        """The pinned copy, unless it was forgotten since."""
        space = self._pins.get(digest)
        copy = space.ready(digest) if space is not None else None
        return copy if copy is not None and copy.is_pinned else None

    def step(self, now_s: float) -> None:
        """End the leases and pins that have run out."""
        for lease_id in self._lease_ends.expire(now_s):
            self.release(lease_id)
        self.unpin(self._pin_ends.expire(now_s))

    def held(self) -> Counter[Copy]:
        """What leases read, and how often."""
        return Counter([copy for lease in self._leases.values() for _, copy in lease])
