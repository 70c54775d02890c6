"""The block pool: who has which block, what is found again, what is told about it."""

import pytest

from armature.blocks.events import KvEvent, KvEventKind
from armature.blocks.hashing import BlockDigest
from armature.blocks.pool import BlockPool


def digest(number: int) -> BlockDigest:
    return BlockDigest(number.to_bytes(16, "little"))


def cached_pool(num_blocks: int, cached: int) -> BlockPool:
    """A pool in which blocks with digests 0, 1, ... are cached as one prompt and used by nobody."""
    pool = BlockPool(num_blocks)
    block_ids = pool.allocate(cached)
    assert block_ids is not None
    for number, block_id in enumerate(block_ids):
        pool.commit(block_id, digest(number))
    pool.release(block_ids)
    pool.take_events()
    return pool


def test_a_pool_without_a_block_to_hand_out_is_refused():
    with pytest.raises(ValueError, match="scratch"):
        BlockPool(1)


def test_the_scratch_block_is_never_handed_out():
    pool = BlockPool(5)
    assert sorted(pool.allocate(4) or []) == [1, 2, 3, 4]
    assert pool.allocate(1) is None


def test_too_large_an_allocation_changes_nothing():
    pool = cached_pool(5, 3)
    assert pool.allocate(5) is None
    assert pool.free_blocks == 4
    assert len(pool.find([digest(0), digest(1), digest(2)])) == 3
    assert pool.take_events() == ()


def test_a_match_ends_at_the_first_unknown_digest():
    pool = cached_pool(8, 3)
    found = pool.match([digest(0), digest(1), digest(77), digest(2)])
    assert len(found) == 2
    assert pool.free_blocks == 5
    pool.release(found)
    assert pool.free_blocks == 7
    pool.check()


def test_whole_digests_are_compared():
    pool = BlockPool(4)
    low_half_equal = BlockDigest(digest(5)[:8] + b"otherwise")
    block_ids = pool.allocate(1) or []
    pool.commit(block_ids[0], digest(5))
    assert pool.find([low_half_equal]) == []


def test_a_prefix_is_evicted_from_its_tail():
    pool = cached_pool(5, 4)
    taken = pool.allocate(1)
    assert taken is not None
    assert len(pool.find([digest(n) for n in range(4)])) == 3
    assert pool.take_events() == (KvEvent(2, KvEventKind.REMOVED, (digest(3),)),)


def test_blocks_without_content_are_handed_out_before_cached_ones_are_evicted():
    pool = cached_pool(6, 3)
    assert pool.allocate(2) is not None
    assert pool.take_events() == ()
    pool.check()


def test_the_first_block_with_a_digest_stays_the_cached_one():
    pool = BlockPool(4)
    first, second = pool.allocate(2) or []
    assert pool.commit(first, digest(1))
    assert not pool.commit(second, digest(1))
    assert pool.find([digest(1)]) == [first]
    pool.release([first, second])
    pool.check()
    assert pool.cached_blocks == 1
    assert [event.digests for event in pool.take_events()] == [(digest(1),)]


def test_a_quarantined_block_is_given_to_nobody():
    pool = BlockPool(4)
    block_ids = pool.allocate(3) or []
    pool.quarantine(block_ids[:2])
    pool.release(block_ids[2:])
    assert (pool.free_blocks, pool.quarantined_blocks) == (1, 2)
    assert pool.allocate(2) is None
    pool.unquarantine([*block_ids, *block_ids])
    assert (pool.free_blocks, pool.quarantined_blocks) == (3, 0)
    pool.check()


def test_clearing_forgets_content_but_leaves_users_their_blocks():
    pool = cached_pool(6, 3)
    pinned = pool.match([digest(0)])
    pool.clear()
    assert pool.find([digest(0)]) == []
    assert pool.free_blocks == 4
    assert pool.take_events() == (KvEvent(2, KvEventKind.CLEARED),)
    pool.release(pinned)
    assert pool.free_blocks == 5
    pool.check()


def test_events_are_numbered_one_by_one_and_merged_by_kind():
    pool = BlockPool(3)
    block_ids = pool.allocate(2) or []
    pool.commit(block_ids[0], digest(0))
    pool.commit(block_ids[1], digest(1))
    pool.release(block_ids)
    pool.allocate(2)
    assert pool.take_events() == (
        KvEvent(1, KvEventKind.STORED, (digest(0), digest(1))),
        KvEvent(2, KvEventKind.REMOVED, (digest(1), digest(0))),
    )
    assert pool.take_events() == ()


def test_touching_makes_a_prefix_outlive_its_tail_again():
    pool = cached_pool(4, 3)
    digests = [digest(n) for n in range(3)]
    # Released one by one from the head, as a reader does: now the head is the oldest.
    blocks = pool.match(digests)
    for block_id in blocks:
        pool.release([block_id])
    pool.touch(digests)
    pool.allocate(1)
    assert len(pool.find(digests)) == 2


def test_releasing_a_block_that_nobody_uses_is_a_mistake():
    pool = BlockPool(3)
    block_ids = pool.allocate(1) or []
    pool.release(block_ids)
    with pytest.raises(AssertionError, match="released by nobody"):
        pool.release(block_ids)
