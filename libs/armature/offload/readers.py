"""Who reads or pins blocks, and until when. What is read stays where it is, whatever else happens."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from armature.blocks.leases import LeaseTable
from armature.offload.copies import Copy, CopyState, Place
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
        self._awaiting: dict[bytes, dict[int, int]] = {}
        """Leases on blocks that are below the fastest tier, each with the block's place in it."""
        self._pins: dict[bytes, TierSpace] = {}
        self._pin_ends: LeaseTable[bytes] = LeaseTable()
        self._last_id = 0

    def __len__(self) -> int:
        """Leases that have not ended."""
        return len(self._leases)

    def lease(self, digests: Sequence[bytes], now_s: float, ttl_s: float) -> Lease:
        """Keep the blocks of a prompt, up to the first that is nowhere, where they are now, for reading.

        Copies of those below the fastest tier to that tier are wanted; when one is there, the lease holds it there, and
        no longer where it was. `update` tells how far they are.
        """
        top, lease_id = self._tiers.top, self._last_id + 1
        held: list[tuple[TierSpace, Copy]] = []
        for digest, copy in zip(digests, top.ready_each(digests), strict=True):
            if copy is not None:
                best = (top, copy)
            else:
                best = self._tiers.best(digest)
                if best is None:
                    break
                self._awaiting.setdefault(digest, {})[lease_id] = len(held)
            best[1].readers += 1
            held.append(best)
        if not held:
            return Lease(0, ())
        self._last_id = lease_id
        self._leases[lease_id] = held
        self._lease_ends.grant(lease_id, now_s + ttl_s)
        self.hurry(lease_id)
        return Lease(lease_id, _places(held))

    def arrived(self, digest: bytes) -> None:
        """A block is in the fastest tier now: leases on it hold it there, before anybody else needs its room."""
        top = self._tiers.top
        arrived = top.ready(digest)
        if arrived is None:
            return
        for lease_id, i in self._awaiting.pop(digest, {}).items():
            space, copy = self._leases[lease_id][i]
            if arrived is not copy:
                arrived.readers += 1
                self._leases[lease_id][i] = (top, arrived)
                self._tiers.unread(space, copy)

    def hurry(self, lease_id: int) -> None:
        """Want copies in the fastest tier of what is below; again, if the first wish was given up for lack of room."""
        tiers = self._tiers
        for space, copy in reversed(self._leases.get(lease_id, [])) if self._awaiting else ():
            if space is not tiers.top and tiers.top.get(copy.digest) is None:
                tiers.cascade.want(copy.digest, tiers.top.tier, copy.tenant, is_urgent=True)

    def update(self, lease_id: int) -> Lease:
        """The same blocks, each in the fastest tier that has it now; one that is damaged ends the run before it."""
        held = self._leases.get(lease_id)
        if held is None:
            return Lease(0, ())
        top = self._tiers.top
        for i, (space, copy) in enumerate(held):
            if space is top and copy.state is CopyState.READY:
                continue
            best = self._tiers.best(copy.digest)
            if best is None:
                self._let_go(lease_id, held[i:])
                del held[i:]
                break
            if best[1] is not copy:
                best[1].readers += 1
                self._tiers.unread(space, copy)
                held[i] = best
        return Lease(lease_id, _places(held))

    def release(self, lease_id: int) -> bool:
        """The blocks were read, or need not be; False: there is no such lease."""
        held = self._leases.pop(lease_id, None)
        if held is None:
            return False
        self._lease_ends.release(lease_id)
        self._let_go(lease_id, held)
        return True

    def _let_go(self, lease_id: int, held: Sequence[tuple[TierSpace, Copy]]) -> None:
        for space, copy in held:
            waiting = self._awaiting.get(copy.digest) if self._awaiting else None
            if waiting is not None and waiting.pop(lease_id, None) is not None and not waiting:
                del self._awaiting[copy.digest]
            copy.readers -= 1
            if not copy.readers:
                space.settle(copy)

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
        waiting = {(lease_id, i) for entry in self._awaiting.values() for lease_id, i in entry.items()}
        assert all(i < len(self._leases[lease_id]) for lease_id, i in waiting), "a lease that has ended waits"
        return Counter([copy for lease in self._leases.values() for _, copy in lease])


def _places(held: Sequence[tuple[TierSpace, Copy]]) -> list[Place]:
    return [Place._make((space.tier, copy.slot)) for space, copy in held]
