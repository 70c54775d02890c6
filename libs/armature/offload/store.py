"""The lower tiers of a node: what is where, who may read it and until when, what goes where next.

It moves no bytes. A block comes in by `reserve` and `commit` (or `abort`); is found by `find`; is read under a lease of
`readers`; is copied between tiers by jobs from `take_copies`, each of which ends with `finish_copy`. Requests tell by
`see` what they ask for, whether or not it is here: that is what admission and eviction go by.

Invariant: every slot is free or has one copy; a copy with readers keeps its slot; every reservation, lease, pin and job
ends, by its holder or by its deadline.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from armature.blocks.leases import LeaseTable
from armature.index.tiers import Tier
from armature.offload.cascade import CopyJob
from armature.offload.copies import Copy, CopyState, Found
from armature.offload.ledger import NO_FACTS, Facts
from armature.offload.policy import OffloadPolicy, TierShape
from armature.offload.readers import Readers
from armature.offload.space import TierSpace
from armature.offload.tiers import Change, TierCounts, Tiers


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreLimits:
    """Bounds of what is kept in mind.

    Raises:
        ValueError: a number is below 1.
    """

    ledger_blocks: int = 1 << 20
    """Blocks whose past is remembered, wherever they are; some 200 bytes each."""
    max_waiting: int = 4096
    """Copies to each tier that may wait; beyond them the oldest is given up."""
    reservation_s: float = 30.0
    """Until a reservation that nobody commits or aborts is aborted."""

    def __post_init__(self) -> None:
        for name in ("ledger_blocks", "max_waiting"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 < self.reservation_s < float("inf"):
            raise ValueError(f"reservation_s is {self.reservation_s}; it must be above 0")


class Answer(StrEnum):
    """What becomes of a block that was offered."""

    PLACED = "placed"
    PRESENT = "present"
    """It is here already, or on its way."""
    REFUSED = "refused"
    """By the tier's admission."""
    CROWDED = "crowded"
    """For lack of room: everything else is read, pinned or being written, or the tenant is at its quota with such."""


class Reservation(NamedTuple):
    """Room for blocks."""

    reservation_id: int
    """0: there is none."""
    slots: Sequence[int | None]
    """Of the fastest tier, for each block that was offered; None: it gets none."""
    answers: Sequence[Answer]
    """Likewise, why."""


class TierStore:
    """The tiers of `shapes`: any of G2, G3 and G4.

    Raises:
        ValueError: there is no tier, or one that is not below the device.
    """

    def __init__(
        self, policy: OffloadPolicy, shapes: Mapping[Tier, TierShape], limits: StoreLimits | None = None
    ) -> None:
        limits = limits or StoreLimits()
        self._tiers = Tiers(policy, shapes, limits.ledger_blocks, limits.max_waiting)
        self.readers = Readers(self._tiers)
        """Leases and pins."""
        self._reservation_s = limits.reservation_s
        self._reservations: dict[int, tuple[TierSpace, list[Copy]]] = {}
        self._ends: LeaseTable[int] = LeaseTable()
        self._last_id = 0

    @property
    def spaces(self) -> Mapping[Tier, TierSpace]:
        return self._tiers.spaces

    @property
    def top(self) -> TierSpace:
        """The fastest tier, which blocks come into first."""
        return self._tiers.top

    @property
    def counts(self) -> Mapping[Tier, TierCounts]:
        return self._tiers.counts

    # --- what was here before

    def restore(self, tier: Tier, found: Mapping[int, Found], now_s: float) -> None:
        """Blocks that an earlier process left in a tier, by slot, oldest first; before the tier takes anything else.

        Raises:
            ValueError: a slot is not one of the tier's, two have the same block, or the tier is in use.
        """
        space = self.spaces[tier]
        space.restore(found)
        for block in found.values():
            copy = space.get(block.digest)
            assert copy is not None
            self._tiers.put(space, copy, now_s)

    def adopt(self, tier: Tier, digests: Sequence[bytes], now_s: float) -> Sequence[bytes]:
        """Blocks that were found in a tier later, oldest first, whatever their slots; those that found room.

        Nobody goes for them, and one that is here, or on its way, is not taken twice.
        """
        space = self.spaces[tier]
        new = [digest for digest in dict.fromkeys(digests) if space.get(digest) is None][: space.num_free_for("")]
        for copy in space.add_all(new, ""):
            self._tiers.put(space, copy, now_s)
        return new

    def measured(self, tier: Tier, read_bytes_per_s: float) -> None:
        """How quickly a tier turned out to be read: decisions go by that from now on."""
        self.spaces[tier].block_s = self.spaces[tier].shape.block_bytes / read_bytes_per_s

    # --- what requests ask for

    def see(self, digests: Sequence[bytes], worth_s: Sequence[float], facts: Facts, now_s: float) -> None:
        """A request asks for a prompt of these blocks; computing each would take so long. Heads stay longest.

        Raises:
            ValueError: there are not as many times as blocks.
        """
        tiers = self._tiers
        tiers.ledger.see(digests, worth_s, facts, now_s)
        for space in tiers.spaces.values():
            for copy in space.ready_of(reversed(digests)) if len(space) else ():
                tiers.touch(space, copy, now_s)

    def find(self, digests: Sequence[bytes]) -> list[Tier]:
        """The fastest tier of each block, up to the first that is nowhere."""
        found: list[Tier] = []
        for digest in digests:
            best = self._tiers.best(digest)
            if best is None:
                break
            found.append(best[0].tier)
        return found

    def is_coming(self, digest: bytes) -> bool:
        """Whether a block is on its way to the fastest tier, or in line for that."""
        top = self._tiers.top
        known = top.get(digest)
        is_written = known is not None and known.state is CopyState.WRITING
        return is_written or self._tiers.cascade.is_wanted(digest, top.tier)

    def onboarded(self, digests: Sequence[bytes]) -> None:
        """A device holds these too, now. In the fastest tier they go first, until they are offered again."""
        top = self._tiers.top
        for digest in digests:
            copy = top.ready(digest)
            if copy is not None and not copy.is_above:
                copy.is_above = True
                copy.is_queued = False
                top.enqueue(copy)

    # --- into the fastest tier

    def reserve(
        self, digests: Sequence[bytes], now_s: float, facts: Facts = NO_FACTS, *, is_above: bool = False
    ) -> Reservation:
        """Room in the fastest tier. The last block will stay longest; `is_above`: a device goes on holding them."""
        tiers, space = self._tiers, self._tiers.top
        if (
            digests
            and space.admits_all
            and space.are_new(digests)
            and tiers.make_room(space, facts.tenant, len(digests))
        ):
            return self._reserve_new(digests, now_s, facts, is_above)
        copies: list[Copy] = []
        slots: list[int | None] = []
        answers: list[Answer] = []
        for digest in digests:
            slots.append(None)
            if (known := space.get(digest)) is not None:
                answers.append(Answer.PRESENT)
                if known.state is CopyState.READY:
                    known.is_above = is_above
                    tiers.touch(space, known, now_s)
            elif not tiers.admits(space, digest):
                answers.append(Answer.REFUSED)
            elif not tiers.make_room(space, facts.tenant):
                answers.append(Answer.CROWDED)
            else:
                copy = space.add(digest, facts.tenant)
                copy.is_above = is_above
                copies.append(copy)
                slots[-1] = copy.slot
                answers.append(Answer.PLACED)
        return Reservation(self._reserved(copies, now_s), slots, answers)

    def _reserve_new(self, digests: Sequence[bytes], now_s: float, facts: Facts, is_above: bool) -> Reservation:
        """The same for blocks that nobody has to think about: the way of most, and four times as quick."""
        tiers, space = self._tiers, self._tiers.top
        tiers.ledger.offered(digests)
        copies = space.add_all(digests, facts.tenant)
        for copy in copies if is_above else ():
            copy.is_above = True
        slots = [copy.slot for copy in copies]
        return Reservation(self._reserved(copies, now_s), slots, [Answer.PLACED] * len(copies))

    def _reserved(self, copies: list[Copy], now_s: float) -> int:
        """Wait for the bytes of blocks; 0: there are none."""
        if not copies:
            return 0
        self._last_id += 1
        self._reservations[self._last_id] = (self._tiers.top, copies)
        self._ends.grant(self._last_id, now_s + self._reservation_s)
        return self._last_id

    def commit(self, reservation_id: int, now_s: float, is_good: Sequence[bool] | None = None) -> int:
        """The bytes have come; `is_good` tells of each block that has a slot whether they are right (default: all).

        Returns how many blocks can be found now; 0 for a reservation that is over.

        Raises:
            ValueError: `is_good` is not as long as there are slots.
        """
        reserved = self._reservations.get(reservation_id)
        if reserved is None:
            return 0
        space, copies = reserved
        goods = [True] * len(copies) if is_good is None else is_good
        if len(goods) != len(copies):
            raise ValueError(f"is_good has {len(goods)} entries; the reservation has {len(copies)} slots")
        del self._reservations[reservation_id]
        self._ends.release(reservation_id)
        self._tiers.end_write(space, copies, goods, now_s)
        self._tiers.keep_headroom()
        return sum(goods)

    def abort(self, reservation_id: int, now_s: float) -> bool:
        """The bytes won't come; False: there is no such reservation."""
        reserved = self._reservations.get(reservation_id)
        if reserved is not None:
            self.commit(reservation_id, now_s, [False] * len(reserved[1]))
        return reserved is not None

    def evict(self, digests: Sequence[bytes], tier: Tier | None = None) -> int:
        """Forget blocks, in one tier or in all, pinned or not: they are of no use or damaged. How many copies went."""
        gone = 0
        for space in self.spaces.values() if tier is None else [self.spaces[tier]]:
            for digest in digests:
                copy = space.ready(digest)
                if copy is not None:
                    self._tiers.drop(space, copy)
                    gone += 1
        return gone

    # --- between tiers

    @property
    def wants_copies(self) -> bool:
        """Whether `take_copies` may have something to do."""
        return self._tiers.cascade.is_wanting

    def take_copies(self, now_s: float, most: int = 1) -> list[CopyJob]:
        """Copies to be done now, at most so many; call `finish_copy` for each."""
        tiers = self._tiers
        jobs: list[CopyJob] = []
        while len(jobs) < most and (wanted := tiers.cascade.next(now_s)) is not None:
            tier, digest, tenant = wanted
            space = self.spaces[tier]
            has_room = tiers.make_room(space, tenant)
            assert has_room, "the cascade has offered a copy that there is no room for"
            jobs.append(tiers.cascade.start(space, space.add(digest, tenant)))
            tiers.keep_headroom()
        return jobs

    def finish_copy(self, job_id: int, now_s: float, *, is_good: bool = True) -> bool:
        """A copy is done, or has failed; False: there is no such job."""
        ended = self._tiers.cascade.finish(job_id)
        if ended is None:
            return False
        source, target, copy = ended
        self._tiers.end_write(target, (copy,), (is_good,), now_s)
        if is_good:
            self.readers.arrived(copy.digest)
            self._tiers.let_leave(source, copy.digest)
        self._tiers.keep_headroom()
        return True

    def pass_on(self, digest: bytes, tier: Tier) -> None:
        """A tier can't take a block in, for reasons of its own: offer it to the next one, from where it is now.

        If that does not want it either, it stays until its room is needed, and nobody waits for it to go.
        """
        below = next((space for lower, space in self.spaces.items() if lower > tier), None)
        best = self._tiers.best(digest)
        if best is None or best[0].tier > tier:
            return
        if below is None or not self._tiers.offer(below, best[1]):
            best[0].stop_waiting_for(best[1])

    # --- time and news

    def step(self, now_s: float) -> None:
        """End what has run out: reservations, leases, pins, blocks whose time is over."""
        for reservation_id in self._ends.expire(now_s):
            self.abort(reservation_id, now_s)
        self.readers.step(now_s)
        for space in self.spaces.values():
            while (copy := space.pop_expired(now_s)) is not None:
                self._tiers.drop(space, copy)
                self.counts[space.tier].expired += 1

    def take_changes(self) -> list[Change]:
        """What can be found, or no longer can, since the last call."""
        return self._tiers.take_changes()

    def check(self) -> None:
        """Assert that no slot, reader or pin is unaccounted for. For tests; takes time proportional to the tiers."""
        reserved = [copy for _, copies in self._reservations.values() for copy in copies]
        expected = self.readers.held() + self._tiers.cascade.held()
        for space in self.spaces.values():
            space.check()
            for copy in space:
                is_writing = copy in reserved or self._tiers.cascade.is_target(copy)
                assert (copy.state is CopyState.WRITING) == is_writing, "a block is written by nobody, or by two"
                assert copy.readers == expected[copy], "a reader is lost"
        assert sum(expected.values()) == sum([copy.readers for copy in expected])
