"""All lower tiers together: looks blocks up, lets them in, and offers what goes to the tier below."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from armature.index.tiers import LOWER_TIERS, Tier
from armature.offload.appraisal import Appraiser
from armature.offload.cascade import Cascade
from armature.offload.copies import Copy, CopyState
from armature.offload.ledger import Ledger
from armature.offload.policy import OffloadPolicy, TierShape
from armature.offload.space import TierSpace


class Change(NamedTuple):
    """What has become findable in a tier, or no longer is."""

    tier: Tier
    is_stored: bool
    digests: list[bytes]


@dataclass(slots=True)
class TierCounts:
    """Since the start, in blocks."""

    stored: int = 0
    refused: int = 0
    evicted: int = 0
    expired: int = 0
    failed: int = 0
    """Whose bytes never came, or came wrong."""


class Tiers:
    """The spaces, the ledger and the cascade; counts what happens and remembers what has changed.

    Raises:
        ValueError: there is no tier, or one that is not below the device.
    """

    def __init__(
        self, policy: OffloadPolicy, shapes: Mapping[Tier, TierShape], ledger_blocks: int, max_waiting: int
    ) -> None:  # fmt: skip
        if not shapes or any(tier not in LOWER_TIERS for tier in shapes):
            raise ValueError(f"tiers are {list(shapes)}; at least one of G2, G3 and G4 must be, and no other")
        ordered = [tier for tier in LOWER_TIERS if tier in shapes]
        self.spaces = {tier: TierSpace(tier, shapes[tier], policy.of(tier)) for tier in ordered}
        self.top = self.spaces[ordered[0]]
        self.counts = {tier: TierCounts() for tier in ordered}
        self.ledger = Ledger(ledger_blocks)
        self.cascade = Cascade(self.spaces, max_waiting)
        self._appraiser = Appraiser(self.spaces, self.ledger)
        edges = [(self.spaces[tier], self.spaces[low]) for tier, low in pairwise(ordered)]
        self._offers_evicted = [(space, below) for space, below in edges if below.policy.offered == "evicted"]
        self._offers_used = {space.tier: below for space, below in edges if below.policy.offered == "used"}
        self._changes: list[Change] = []

    def best(self, digest: bytes) -> tuple[TierSpace, Copy] | None:
        """Where a block is read fastest."""
        for space in self.spaces.values():
            copy = space.ready(digest)
            if copy is not None:
                return space, copy
        return None

    def touch(self, space: TierSpace, copy: Copy, now_s: float) -> None:
        """A block was stored or used."""
        if not space.is_lru:
            touched, eviction = self._appraiser.appraise(space, copy.digest, now_s), space.policy.eviction
            copy.number, copy.expires_s = eviction.number(touched), eviction.expires_s(touched)
        space.touch(copy)
        below = self._offers_used.get(space.tier)
        if below is not None:
            self.offer(below, copy)

    def admits(self, space: TierSpace, digest: bytes) -> bool:
        """Whether a block that the tier does not hold may come in; a refusal is counted."""
        self.ledger.offered((digest,))
        if space.admits_all:
            return True
        is_admitted = space.policy.admission.admits(self._appraiser.appraise(space, digest))
        self.counts[space.tier].refused += not is_admitted
        return is_admitted

    def make_room(self, space: TierSpace, tenant: str, num_blocks: int = 1) -> bool:
        """Have free slots for a tenant, if it may have so many and others can go for them; False: there are less."""
        while space.num_free_for(tenant) < num_blocks:
            victim = space.victim(tenant)
            if victim is None:
                return False
            self._evict(space, victim)
        return True

    def end_write(self, space: TierSpace, copies: Sequence[Copy], goods: Sequence[bool], now_s: float) -> None:
        """The bytes of blocks have come, or won't; `goods` tells of each."""
        counts = self.counts[space.tier]
        if space.is_lru and space.tier not in self._offers_used and all(goods):
            counts.stored += len(copies)
            space.have_come(copies)
            self._changed(space.tier, True, [copy.digest for copy in copies])
            return
        for copy, is_good in zip(copies, goods, strict=True):
            if is_good:
                counts.stored += 1
                self.put(space, copy, now_s)
            else:
                counts.failed += 1
                space.drop(copy)

    def put(self, space: TierSpace, copy: Copy, now_s: float) -> None:
        """A block can be found from now on."""
        copy.state = CopyState.READY
        self._changed(space.tier, True, (copy.digest,))
        self.touch(space, copy, now_s)

    def drop(self, space: TierSpace, copy: Copy) -> None:
        """Nobody finds a ready block any more."""
        space.drop(copy)
        self._changed(space.tier, False, (copy.digest,))

    def unread(self, space: TierSpace, copy: Copy) -> None:
        """A reader has gone."""
        copy.readers -= 1
        space.settle(copy)

    def keep_headroom(self) -> None:
        """Offer what goes next to the tier below, before anybody needs its room."""
        for space, below in self._offers_evicted:
            while space.missing_headroom > 0:
                copy = space.start_leaving()
                if copy is None:
                    break
                if not self.offer(below, copy):
                    self._evict(space, copy)

    def let_leave(self, space: TierSpace, digest: bytes) -> None:
        """A block was copied to the tier below; if it was on its way out, it goes."""
        copy = space.ready(digest)
        if copy is not None and space.is_leaving(copy) and copy.is_evictable:
            self._evict(space, copy)

    def take_changes(self) -> list[Change]:
        """What has changed since the last call; changes of one kind in a row are one."""
        taken, self._changes = self._changes, []
        return taken

    def _changed(self, tier: Tier, is_stored: bool, digests: Sequence[bytes]) -> None:
        last = self._changes[-1] if self._changes else None
        if last is not None and last.tier is tier and last.is_stored is is_stored:
            last.digests.extend(digests)
        else:
            self._changes.append(Change(tier, is_stored, list(digests)))

    def offer(self, below: TierSpace, copy: Copy) -> bool:
        """Have a block copied to the tier below, if it is wanted there; whether it will be."""
        digest = copy.digest
        known = below.get(digest)
        if known is not None:
            return known.state is CopyState.WRITING
        if not self.cascade.is_wanted(digest, below.tier) and not self.admits(below, digest):
            return False
        self.cascade.want(digest, below.tier, copy.tenant)
        return True

    def _evict(self, space: TierSpace, copy: Copy) -> None:
        space.inflation = max(space.inflation, copy.number)
        self.drop(space, copy)
        self.counts[space.tier].evicted += 1
