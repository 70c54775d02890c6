"""Whatever is done to a store, no lease, slot or byte is lost, and nobody reads another block's bytes.

The oracle is memory itself: what each slot holds. It is scribbled on as soon as a slot is given away, so that a slot
that was given away too early shows.
"""

from collections import Counter
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from armature.index.tiers import Tier
from armature.offload.cascade import CopyJob
from armature.offload.copies import Place
from armature.offload.ledger import Facts
from armature.offload.policy import TierShape, offload_policy_of
from armature.offload.store import Answer, StoreLimits, TierStore
from armature.runtime.policies import OFFLOAD_POLICIES

CHAINS = [[bytes([chain, depth]) * 8 for depth in range(4)] for chain in range(2)]
EVERY = [digest for chain in CHAINS for digest in chain]
TENANTS = ("", "acme", "blue")
SCRIBBLE = b"?"
QUOTA = {"g2": {"tenants": {"acme": 0.4}}, "g3": {"tenant_share": 0.6}}
RESERVATION_S = 8.0
SIZES = {Tier.G2: 5, Tier.G3: 5, Tier.G4: 3}
POLICIES: list[dict[str, Any]] = [
    *[OFFLOAD_POLICIES.read(name) for name in OFFLOAD_POLICIES.names()],
    {"g2": {"eviction": {"ttl": {"default_s": 5}}}, "g3": {"eviction": "priority", "offered": "used"}},
    {"g2": {"eviction": "lfu"}, "g3": {"admission": "presence", "write_bytes_per_s": 20.0, "burst_s": 3.0}},
]
chains = st.sampled_from(CHAINS)
depths = st.integers(1, 4)
picks = st.integers(0, 50)
tenants = st.sampled_from(TENANTS)


class StoreMachine(RuleBasedStateMachine):
    """Writers, readers, copiers and operators who come, forget and disagree in any order."""

    @initialize(policy=st.sampled_from(POLICIES), has_quotas=st.booleans(), tiers=st.integers(1, 3))
    def start(self, policy: dict[str, Any], has_quotas: bool, tiers: int) -> None:
        if has_quotas:
            policy = {**policy, **{key: {**policy.get(key, {}), **more} for key, more in QUOTA.items()}}
        shapes = {
            tier: TierShape(num_blocks=size, block_bytes=10, read_bytes_per_s=1000.0 / tier)
            for tier, size in list(SIZES.items())[:tiers]
        }
        self.policy = offload_policy_of(policy)
        limits = StoreLimits(ledger_blocks=12, max_waiting=6, reservation_s=RESERVATION_S)
        self.store = TierStore(self.policy, shapes, limits)
        self.now_s = 0.0
        self.memory: dict[Place, bytes] = {}
        self.owners: dict[bytes, str] = {}
        self.writing: dict[int, tuple[dict[bytes, Place], float]] = {}
        self.reading: dict[int, tuple[list[bytes], list[Place], float]] = {}
        self.jobs: list[CopyJob] = []
        self.pinned: dict[bytes, float] = {}
        self.told: dict[Tier, set[bytes]] = {tier: set() for tier in shapes}

    # --- what callers do

    @rule(chain=chains, depth=depths, tenant=tenants, priority=st.integers(-2, 2), keep_s=st.sampled_from([0.0, 4.0]))
    def ask(self, chain: list[bytes], depth: int, tenant: str, priority: int, keep_s: float) -> None:
        facts = Facts(tenant=tenant, priority=priority, keep_s=keep_s)
        self.store.see(chain[:depth], [0.1 * (i + 1) for i in range(depth)], facts, self.now_s)

    @rule(digests=st.lists(st.sampled_from(EVERY), max_size=5), tenant=tenants, is_above=st.booleans())
    def reserve(self, digests: list[bytes], tenant: str, is_above: bool) -> None:
        self.follow_changes()
        top = self.store.spaces[Tier.G2]
        before, was_held = set(self.told[Tier.G2]), top.held_by(tenant)
        made = self.store.reserve(digests, self.now_s, Facts(tenant=tenant), is_above=is_above)
        slots = zip(digests, made.slots, strict=True)
        placed = [(digest, Place(Tier.G2, slot)) for digest, slot in slots if slot is not None]
        assert [answer is Answer.PLACED for answer in made.answers] == [slot is not None for slot in made.slots]
        assert bool(placed) == bool(made.reservation_id)
        for digest, place in placed:
            self.memory[place] = SCRIBBLE
            self.owners[digest] = tenant
        if placed:
            self.writing[made.reservation_id] = (dict(placed), self.now_s + RESERVATION_S)
        self.follow_changes()
        lost = [digest for digest in before - self.told[Tier.G2] if self.owners[digest] != tenant]
        limit = int(self.policy.g2.share_of(tenant) * SIZES[Tier.G2])
        assert len(lost) <= max(limit - was_held, 0), "a tenant took others' blocks beyond its quota"

    @rule(pick=picks, goods=st.lists(st.booleans(), min_size=6, max_size=6))
    def commit(self, pick: int, goods: list[bool]) -> None:
        if self.writing:
            reservation_id = sorted(self.writing)[pick % len(self.writing)]
            written, _ = self.writing.pop(reservation_id)
            goods = goods[: len(written)]
            for good, (digest, place) in zip(goods, written.items(), strict=True):
                if good:
                    self.memory[place] = digest
            assert self.store.commit(reservation_id, self.now_s, goods) == sum(goods)
            assert not self.store.abort(reservation_id, self.now_s)

    @rule(chain=chains, depth=depths, tenant=tenants)
    def put(self, chain: list[bytes], depth: int, tenant: str) -> None:
        """What a worker does most of the time."""
        before = set(self.writing)
        self.reserve(chain[:depth], tenant, False)
        for reservation_id in set(self.writing) - before:
            self.commit(sorted(self.writing).index(reservation_id), [True] * depth)

    @rule()
    def copy_all(self) -> None:
        self.take_copies(20)
        while self.jobs:
            self.finish_copy(0, True)

    @precondition(lambda self: self.writing)
    @rule(pick=picks)
    def abort(self, pick: int) -> None:
        if self.writing:
            reservation_id = sorted(self.writing)[pick % len(self.writing)]
            del self.writing[reservation_id]
            assert self.store.abort(reservation_id, self.now_s)
            assert self.store.commit(reservation_id, self.now_s) == 0

    @rule(wanted=st.lists(picks, min_size=1, max_size=3), ttl_s=st.sampled_from([2.0, 6.0]))
    def lease(self, wanted: list[int], ttl_s: float) -> None:
        # Mostly of what is there, the lowest tier first, and sometimes of what is not.
        ready = [digest for told in reversed(list(self.told.values())) for digest in sorted(told)] + EVERY[:2]
        digests = list(dict.fromkeys([ready[pick % len(ready)] for pick in wanted]))
        found = self.store.find(digests)
        lease = self.store.readers.lease(digests, self.now_s, ttl_s)
        assert [place.tier for place in lease.places] == found
        if lease.places:
            self.reading[lease.lease_id] = (digests[: len(found)], list(lease.places), self.now_s + ttl_s)

    @precondition(lambda self: self.reading)
    @rule(pick=picks)
    def update(self, pick: int) -> None:
        if self.reading:
            lease_id = sorted(self.reading)[pick % len(self.reading)]
            digests, _, until_s = self.reading[lease_id]
            found = self.store.find(digests)
            places = list(self.store.readers.update(lease_id).places)
            assert [place.tier for place in places] == found
            self.reading[lease_id] = (digests[: len(places)], places, until_s)

    @precondition(lambda self: self.reading)
    @rule(pick=picks)
    def let_go(self, pick: int) -> None:
        if self.reading:
            lease_id = sorted(self.reading)[pick % len(self.reading)]
            del self.reading[lease_id]
            assert self.store.readers.release(lease_id)
            assert not self.store.readers.release(lease_id)

    @rule(chain=chains, depth=depths)
    def onboarded(self, chain: list[bytes], depth: int) -> None:
        self.store.onboarded(chain[:depth])

    @rule(digest=st.sampled_from(EVERY), span_s=st.sampled_from([2.0, 9.0]))
    def pin(self, digest: bytes, span_s: float) -> None:
        is_known = digest in self.pinned
        is_pinned = self.store.readers.pin([digest], self.now_s + span_s)
        assert is_pinned or not is_known
        if is_pinned:
            self.pinned[digest] = self.now_s + span_s

    @rule(digests=st.lists(st.sampled_from(EVERY), max_size=3))
    def unpin(self, digests: list[bytes]) -> None:
        self.store.readers.unpin(digests)
        for digest in digests:
            self.pinned.pop(digest, None)

    @rule(digests=st.lists(st.sampled_from(EVERY), max_size=3, unique=True))
    def evict(self, digests: list[bytes]) -> None:
        self.follow_changes()
        there = sum([digest in told for told in self.told.values() for digest in digests])
        assert self.store.evict(digests) == there
        for digest in digests:
            self.pinned.pop(digest, None)
        assert not any(self.store.find([digest]) for digest in digests)

    @rule(most=st.integers(1, 4))
    def take_copies(self, most: int) -> None:
        jobs = self.store.take_copies(self.now_s, most)
        assert len(jobs) <= most
        for job in jobs:
            assert self.memory[job.source] == job.digest
            self.memory[job.target] = SCRIBBLE
            self.owners.setdefault(job.digest, "")
        self.jobs += jobs

    @precondition(lambda self: self.jobs)
    @rule(pick=picks, is_good=st.booleans())
    def finish_copy(self, pick: int, is_good: bool) -> None:
        if self.jobs:
            job = self.jobs.pop(pick % len(self.jobs))
            assert self.memory[job.source] == job.digest, "the source was given away while it was copied"
            if is_good:
                self.memory[job.target] = job.digest
            assert self.store.finish_copy(job.job_id, self.now_s, is_good=is_good)
            if is_good and job.target.tier is Tier.G2:
                self.follow_up(job.digest, job.target)
            assert not self.store.finish_copy(job.job_id, self.now_s)

    def follow_up(self, digest: bytes, place: Place) -> None:
        """Leases hold a block in the fastest tier as soon as it is there."""
        if self.store.find([digest]) == [Tier.G2]:
            for digests, places, _ in self.reading.values():
                for i, (one, held) in enumerate(zip(digests, places, strict=True)):
                    if one == digest and held.tier is not Tier.G2:
                        places[i] = place

    @rule(span_s=st.sampled_from([0.5, 3.0]))
    def wait(self, span_s: float) -> None:
        self.now_s += span_s
        self.store.step(self.now_s)
        self.pinned = {digest: until_s for digest, until_s in self.pinned.items() if until_s > self.now_s}
        for lease_id, (_, _, until_s) in list(self.reading.items()):
            if until_s <= self.now_s:
                del self.reading[lease_id]
                assert not self.store.readers.release(lease_id)
        for reservation_id, (_, until_s) in list(self.writing.items()):
            if until_s <= self.now_s:
                del self.writing[reservation_id]
                assert not self.store.abort(reservation_id, self.now_s)

    # --- what must hold

    def follow_changes(self) -> None:
        for change in self.store.take_changes():
            for digest in change.digests:
                assert (digest in self.told[change.tier]) != change.is_stored, "a change is told twice"
            (self.told[change.tier].update if change.is_stored else self.told[change.tier].difference_update)(
                change.digests
            )

    @invariant()
    def nothing_is_unaccounted_for(self) -> None:
        self.store.check()
        self.follow_changes()
        assert len(self.store.readers) == len(self.reading)
        assert all(self.store.find([digest]) for digest in self.pinned), "a pinned block was lost"
        for tier, space in self.store.spaces.items():
            ready = {copy.digest: space.place(copy) for copy in space if space.ready(copy.digest)}
            assert set(ready) == self.told[tier]
            for digest, place in ready.items():
                assert self.memory[place] == digest, "a block that can be found has another's bytes"
            assert space.num_pinned <= space.max_pinned
            assert space.num_pinned <= len(self.pinned)
            held = Counter({tenant: space.held_by(tenant) for tenant in TENANTS})
            for tenant in TENANTS:
                assert held[tenant] <= int(self.policy.of(tier).share_of(tenant) * SIZES[tier])
            assert held.total() + space.free_blocks == SIZES[tier]

    @invariant()
    def what_is_read_keeps_its_bytes(self) -> None:
        """Even of a block that is forgotten meanwhile."""
        for digests, places, _ in self.reading.values():
            assert [self.memory[place] for place in places] == digests

    def teardown(self) -> None:
        if not hasattr(self, "store"):
            return
        for job in self.jobs:
            self.store.finish_copy(job.job_id, self.now_s)
        self.store.step(self.now_s + 1000)
        self.store.evict(EVERY)
        self.store.check()
        for tier, space in self.store.spaces.items():
            assert space.free_blocks == SIZES[tier], "a slot was leaked"


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=250, stateful_step_count=40, deadline=None)
"""10,000 operations."""


def test_a_store_needs_a_tier_below_the_device() -> None:
    shape = TierShape(num_blocks=1, block_bytes=1, read_bytes_per_s=1.0)
    for shapes in ({}, {Tier.G1: shape}):
        with pytest.raises(ValueError, match="at least one of G2, G3 and G4"):
            TierStore(offload_policy_of({}), shapes)
