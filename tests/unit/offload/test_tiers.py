"""What comes into a tier, what goes, and where it goes then."""

from typing import Any

import pytest

from armature.index.tiers import Tier
from armature.offload.copies import Found, Place
from armature.offload.ledger import NO_FACTS, Facts
from armature.offload.policy import TierShape, offload_policy_of
from armature.offload.store import Answer, StoreLimits, TierStore

BLOCK_BYTES = 1000


def digest(number: int) -> bytes:
    return number.to_bytes(8, "little") * 2


def store_of(given: dict[str, Any], *sizes: int, limits: StoreLimits | None = None) -> TierStore:
    """A store of G2 with so many blocks, G3 likewise if there is a second size, and G4; each a tenth as fast."""
    tiers = zip((Tier.G2, Tier.G3, Tier.G4), (1e6, 1e5, 1e4), sizes, strict=False)
    shapes = {
        tier: TierShape(num_blocks=size, block_bytes=BLOCK_BYTES, read_bytes_per_s=speed) for tier, speed, size in tiers
    }
    return TierStore(offload_policy_of(given), shapes, limits)


def see(store: TierStore, *numbers: int, now_s: float = 0.0, worth_s: float = 1.0, facts: Facts = NO_FACTS) -> None:
    store.see([digest(number) for number in numbers], [worth_s] * len(numbers), facts, now_s)


def put(store: TierStore, *numbers: int, now_s: float = 0.0, facts: Facts = NO_FACTS) -> list[int]:
    """Store blocks one by one; which of them came in."""
    taken: list[int] = []
    for number in numbers:
        made = store.reserve([digest(number)], now_s, facts)
        taken += [number] * store.commit(made.reservation_id, now_s)
        copy_all(store, now_s)
    return taken


def copy_all(store: TierStore, now_s: float = 0.0) -> int:
    """Do every copy that is wanted; how many."""
    count = 0
    while jobs := store.take_copies(now_s):
        count += sum([store.finish_copy(job.job_id, now_s) for job in jobs])
    return count


def held(store: TierStore, tier: Tier) -> list[int]:
    return sorted([int.from_bytes(copy.digest[:8], "little") for copy in store.spaces[tier]])


# --- eviction


@pytest.mark.parametrize(
    ("eviction", "left"),
    [("lru", [2, 3, 4]), ("lfu", [1, 3, 4]), ("priority", [1, 2, 4]), ("cost", [1, 3, 4])],
)
def test_each_order_lets_another_block_go(eviction: str, left: list[int]) -> None:
    store = store_of({"g2": {"eviction": eviction}}, 3)
    see(store, 1, facts=Facts(priority=1))
    see(store, 1, facts=Facts(priority=1), worth_s=5.0)
    see(store, 2, facts=Facts(priority=1), worth_s=0.1)
    see(store, 3, 3, facts=Facts(priority=-1))
    put(store, 1, 2, 3)
    see(store, 4)
    put(store, 4)
    assert held(store, Tier.G2) == left


def test_what_is_kept_for_a_time_goes_when_it_is_over_and_not_before() -> None:
    store = store_of({"g2": {"eviction": {"ttl": {"default_s": 10}}}}, 2)
    see(store, 1, facts=Facts(keep_s=100.0))
    see(store, 2)
    put(store, 1, 2)
    put(store, 3, now_s=1.0)
    assert held(store, Tier.G2) == [1, 3]
    store.step(11.5)
    assert held(store, Tier.G2) == [1]
    store.step(100.5)
    assert held(store, Tier.G2) == []
    assert store.counts[Tier.G2].expired == 2


def test_what_a_device_holds_too_goes_first() -> None:
    store = store_of({}, 3)
    put(store, 1, 2, 3)
    store.onboarded([digest(3)])
    put(store, 4)
    assert held(store, Tier.G2) == [1, 2, 4]
    put(store, 2)
    store.onboarded([digest(1)])
    put(store, 1, 5)
    assert held(store, Tier.G2) == [1, 2, 5]


def test_cost_keeps_what_only_computing_gives_back() -> None:
    """A block that the disk holds is lost at the price of a read, so it goes before one that is nowhere else."""
    store = store_of({"g2": {"eviction": "cost"}, "g3": {"offered": "used", "admission": "frequency"}}, 2, 4)
    see(store, 1)
    see(store, 1)
    put(store, 1)
    assert held(store, Tier.G3) == [1]
    see(store, 2, worth_s=0.5)
    put(store, 2)
    see(store, 1)
    see(store, 3)
    put(store, 3)
    assert held(store, Tier.G2) == [2, 3]


# --- admission


def test_frequency_lets_in_what_was_used_often_enough() -> None:
    store = store_of({"g2": {"admission": {"frequency": {"min_uses": 2}}}}, 4)
    see(store, 1, 2)
    see(store, 2)
    assert put(store, 1, 2, 3) == [2]
    assert store.counts[Tier.G2].refused == 2


def test_a_forgotten_block_starts_anew() -> None:
    store = store_of({"g2": {"admission": "frequency"}}, 4, limits=StoreLimits(ledger_blocks=2))
    see(store, 1)
    see(store, 2, 3)
    see(store, 1)
    assert put(store, 1) == []


def test_tinylfu_lets_nothing_in_for_a_block_that_was_seen_more_often() -> None:
    store = store_of({"g2": {"admission": "tinylfu"}}, 1)
    for number, times in ((1, 4), (2, 3), (3, 5)):
        for _ in range(times):
            see(store, number)
    assert put(store, 1) == [1]
    assert put(store, 2) == []
    assert put(store, 3) == [3]


def test_presence_keeps_nothing_twice() -> None:
    store = store_of({"g3": {"admission": "presence"}}, 2, 4, 8)
    see(store, 1)
    put(store, 1, 2, 3, 4, 5, 6, 7)
    remote = held(store, Tier.G4)
    assert remote
    store.evict([digest(number) for number in remote], Tier.G3)
    see(store, *remote)
    put(store, *remote, 8, 9)
    assert not set(held(store, Tier.G3)) & set(remote)


def test_cost_learns_which_blocks_come_back() -> None:
    """Prompts' heads are asked for again and their tails are not: after some traffic only heads are written."""
    store = store_of({"g2": {"admission": {"cost": {"min_s_per_gib": 0.5 * (1 << 30) / BLOCK_BYTES}}}}, 64)
    taken: list[int] = []
    for turn in range(200):
        head, tail = 1000 * turn, [1000 * turn + i for i in range(1, 20)]
        see(store, head, *tail)
        taken = put(store, head, *tail)
        see(store, head)
    assert taken == [199_000]


# --- between tiers


def test_blocks_cascade_as_they_leave() -> None:
    store = store_of({}, 4, 4, 4)
    put(store, *range(1, 11))
    assert held(store, Tier.G2) == [8, 9, 10]
    assert held(store, Tier.G3) == [5, 6, 7]
    assert held(store, Tier.G4) == [1, 2, 3, 4]
    assert store.find([digest(1), digest(9), digest(5), digest(77), digest(10)]) == [Tier.G4, Tier.G2, Tier.G3]


def test_blocks_are_written_down_at_once_where_the_policy_says_so() -> None:
    store = store_of({"g3": {"offered": "used"}}, 4, 4)
    put(store, 1)
    assert (held(store, Tier.G2), held(store, Tier.G3)) == ([1], [1])


def test_a_leased_block_is_promoted_and_its_lease_moves_with_it() -> None:
    store = store_of({}, 4, 8)
    put(store, 1, 2, 3, 4, 5)
    lease = store.readers.lease([digest(1), digest(5)], 0.0, 10.0)
    assert [place.tier for place in lease.places] == [Tier.G3, Tier.G2]
    (job,) = store.take_copies(0.0)
    assert (job.source, job.target.tier) == (lease.places[0], Tier.G2)
    assert store.finish_copy(job.job_id, 0.0)
    moved = store.readers.update(lease.lease_id)
    assert moved.places == [job.target, lease.places[1]]
    put(store, *range(6, 12))
    assert {1, 5} <= set(held(store, Tier.G2))
    assert store.readers.release(lease.lease_id)
    put(store, *range(12, 16))
    assert not {1, 5} & set(held(store, Tier.G2))


def test_a_copy_that_fails_costs_its_target_only() -> None:
    store = store_of({}, 2, 4)
    made = store.reserve([digest(1)], 0.0)
    store.commit(made.reservation_id, 0.0)
    made = store.reserve([digest(2)], 0.0)
    store.commit(made.reservation_id, 0.0)
    (job,) = store.take_copies(0.0)
    assert store.finish_copy(job.job_id, 0.0, is_good=False)
    assert held(store, Tier.G3) == []
    assert held(store, Tier.G2) == [1, 2]
    assert store.counts[Tier.G3].failed == 1


def test_a_disk_gets_no_more_than_its_budget() -> None:
    store = store_of({"g3": {"offered": "used", "write_bytes_per_s": 2.0 * BLOCK_BYTES, "burst_s": 2.0}}, 64, 64)
    put(store, *range(20))
    assert len(held(store, Tier.G3)) == 4
    assert copy_all(store, 3.0) == 4
    assert copy_all(store, 3.2) == 0
    assert copy_all(store, 3.6) == 1


def test_a_full_line_gives_up_the_oldest_wish() -> None:
    store = store_of({"g3": {"offered": "used"}}, 64, 64, limits=StoreLimits(max_waiting=3))
    for number in range(5):
        made = store.reserve([digest(number)], 0.0)
        store.commit(made.reservation_id, 0.0)
    assert copy_all(store) == 3
    assert held(store, Tier.G3) == [2, 3, 4]


def test_a_reservation_says_of_every_block_why() -> None:
    store = store_of({"g2": {"tenants": {"acme": 0.5}, "admission": {"frequency": {"min_uses": 1}}}}, 4)
    for number in range(3):
        store.see([digest(number)], [1.0], Facts(tenant="acme"), 0.0)
    store.reserve([digest(0)], 0.0, Facts(tenant="acme"))
    made = store.reserve([digest(number) for number in (0, 9, 1, 2)], 0.0, Facts(tenant="acme"))
    assert made.answers == [Answer.PRESENT, Answer.REFUSED, Answer.PLACED, Answer.CROWDED]


def test_a_block_that_comes_up_for_a_lease_stays_though_room_is_needed_at_once() -> None:
    store = store_of({}, 4, 64)
    put(store, *range(20))
    lease = store.readers.lease([digest(number) for number in range(8)], 1.0, 9.0)
    while jobs := store.take_copies(1.0):
        for job in jobs:
            store.finish_copy(job.job_id, 1.0)
    places = store.readers.update(lease.lease_id).places
    assert [place.tier for place in places] == [Tier.G2] * 4 + [Tier.G3] * 4, "as many as there is room for, in order"
    store.check()


# --- what an earlier process left


def test_what_an_earlier_process_left_is_found_where_it_was_and_goes_oldest_first() -> None:
    store = store_of({}, 2, 3)
    store.restore(Tier.G3, {2: Found(digest(1)), 0: Found(digest(2))}, 0.0)
    assert store.find([digest(2), digest(1)]) == [Tier.G3, Tier.G3]
    assert [(change.tier, change.is_stored, list(change.digests)) for change in store.take_changes()] == [
        (Tier.G3, True, [digest(1), digest(2)])
    ]
    assert store.readers.lease([digest(1)], 0.0, 9.0).places == [Place(Tier.G3, 2)]
    assert store.is_coming(digest(1))
    assert not store.is_coming(digest(2))
    copy_all(store)
    assert store.find([digest(1)]) == [Tier.G2]
    assert not store.is_coming(digest(1))
    store.check()


@pytest.mark.parametrize("slots", [{3: 1}, {-1: 1}, {0: 1, 1: 1}], ids=["outside", "negative", "twice"])
def test_what_does_not_fit_a_tier_is_not_restored(slots: dict[int, int]) -> None:
    with pytest.raises(ValueError, match="slots"):
        store_of({}, 2, 3).restore(Tier.G3, {slot: Found(digest(number)) for slot, number in slots.items()}, 0.0)


def test_nothing_is_restored_into_a_tier_in_use() -> None:
    store = store_of({}, 2, 3)
    put(store, 1)
    with pytest.raises(ValueError, match="in use"):
        store.restore(Tier.G2, {0: Found(digest(2))}, 0.0)


def test_blocks_that_were_restored_count_against_their_tenants() -> None:
    store = store_of({"g2": {"tenants": {"a": 0.5}}}, 4)
    store.restore(Tier.G2, {0: Found(digest(1), "b"), 1: Found(digest(2), "a"), 2: Found(digest(3), "a")}, 0.0)
    put(store, 4, facts=Facts(tenant="a"))
    assert held(store, Tier.G2) == [1, 3, 4]
    store.check()


def test_what_is_found_later_takes_free_slots_and_nobodys_place() -> None:
    store = store_of({}, 2, 3)
    put(store, 1)
    assert store.adopt(Tier.G2, [digest(1), digest(2), digest(2), digest(3)], 0.0) == [digest(2)]
    assert store.adopt(Tier.G3, [digest(number) for number in (3, 4, 5, 6)], 0.0) == [digest(3), digest(4), digest(5)]
    assert store.adopt(Tier.G3, [digest(7)], 0.0) == []
    assert store.find([digest(1), digest(2), digest(5), digest(6)]) == [Tier.G2, Tier.G2, Tier.G3]
    found = [digest(3), digest(4), digest(5)]
    assert [change.digests for change in store.take_changes() if change.tier is Tier.G3] == [found]
    store.check()


# --- pins, leases, quotas


def test_pins_hold_until_their_time_within_the_tiers_limit() -> None:
    store = store_of({"g2": {"pinned_share": 0.5}}, 4)
    put(store, 1, 2, 3)
    assert store.readers.pin([digest(1), digest(2), digest(3)], 10.0) == 2
    put(store, 4, 5, 6)
    assert held(store, Tier.G2) == [1, 2, 5, 6]
    store.step(10.0)
    put(store, 7, 8)
    assert held(store, Tier.G2) == [1, 2, 7, 8] or held(store, Tier.G2) == [5, 6, 7, 8]


def test_when_everything_is_read_nobody_is_let_in() -> None:
    store = store_of({}, 2)
    put(store, 1, 2)
    lease = store.readers.lease([digest(1), digest(2)], 0.0, 5.0)
    assert put(store, 3) == []
    store.step(5.0)
    assert not store.readers.release(lease.lease_id)
    assert put(store, 3) == [3]


def test_a_tenant_at_its_quota_evicts_only_its_own_blocks() -> None:
    store = store_of({"g2": {"tenant_share": 0.5, "tenants": {"small": 0.25, "none": 0}}}, 8)
    put(store, 1, 2, 3, 4, facts=Facts(tenant="a"))
    put(store, 10, 11, 12, 13, facts=Facts(tenant="small"))
    assert held(store, Tier.G2) == [1, 2, 3, 4, 12, 13]
    put(store, *range(5, 9), facts=Facts(tenant="a"))
    assert held(store, Tier.G2) == [5, 6, 7, 8, 12, 13]
    assert put(store, 20, facts=Facts(tenant="none")) == []


def test_a_damaged_block_is_forgotten_at_once_and_its_slot_when_it_is_unread() -> None:
    store = store_of({}, 1)
    put(store, 1)
    lease = store.readers.lease([digest(1)], 0.0, 5.0)
    assert store.evict([digest(1)]) == 1
    assert store.find([digest(1)]) == []
    assert put(store, 2) == []
    assert store.readers.update(lease.lease_id).places == []
    store.readers.release(lease.lease_id)
    assert put(store, 2) == [2]


def test_commit_must_tell_of_every_block() -> None:
    store = store_of({}, 4)
    made = store.reserve([digest(1), digest(2)], 0.0)
    with pytest.raises(ValueError, match="is_good has 1 entries; the reservation has 2 slots"):
        store.commit(made.reservation_id, 0.0, [True])
    assert store.commit(made.reservation_id, 0.0, [True, False]) == 1
    assert held(store, Tier.G2) == [1]


def test_nobody_waits_for_what_the_tier_below_can_not_take() -> None:
    store = store_of({}, 2, 4)
    store.commit(store.reserve([digest(1), digest(2)], 0.0).reservation_id, 0.0)
    (job,) = store.take_copies(0.0)
    assert store.top.room_blocks == 0
    store.finish_copy(job.job_id, 0.0, is_good=False)
    store.pass_on(job.digest, Tier.G3)
    assert (store.top.room_blocks, store.top.leaving_blocks, held(store, Tier.G2)) == (1, 0, [1, 2])
    assert put(store, 3) == [3]
    assert (held(store, Tier.G2), held(store, Tier.G3)) == ([3], [2])
    store.check()


def test_a_small_tier_keeps_more_free_than_one_block() -> None:
    assert store_of({}, 64, 64).top.headroom_blocks == 8
