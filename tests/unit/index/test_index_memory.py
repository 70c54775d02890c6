"""What the index weighs, and what leaves when it may weigh no more."""

import random
import tracemalloc

import pytest

from armature.index.prefix_index import PrefixIndex
from armature.index.size import IndexSize
from armature.index.tiers import Tier

LIMIT_BYTES = 200_000


def prompt(seed: int, length: int = 50) -> list[int]:
    rng = random.Random(seed)
    return [rng.getrandbits(64) for _ in range(length)]


def test_every_store_ends_within_the_limit() -> None:
    index = PrefixIndex(LIMIT_BYTES)
    for seed in range(300):
        hashes = prompt(seed)
        for worker in range(seed % 3 + 1):
            index.store(f"w{worker}", hashes, Tier(seed % 4 + 1))
            assert index.size().size_bytes <= LIMIT_BYTES
        if seed % 5 == 0:
            index.match(hashes)
    index.check()
    size = index.size()
    assert size.evicted_holdings + size.holdings == sum(seed % 3 + 1 for seed in range(300)) * 50


def test_what_is_matched_stays_and_what_nobody_asks_for_leaves() -> None:
    index = PrefixIndex(LIMIT_BYTES)
    asked, forgotten = prompt(1), prompt(2)
    for hashes in (asked, forgotten):
        index.store("w", hashes)
        assert index.match(hashes) == {"w": 50}
    for seed in range(3, 300):
        index.store("w", prompt(seed))
        assert index.match(asked) == {"w": 50}
    assert index.match(forgotten) == {}


def test_events_about_blocks_that_left_change_nothing_else() -> None:
    index = PrefixIndex(LIMIT_BYTES)
    for seed in range(200):
        index.store("w", prompt(seed))
    index.remove("w", prompt(0))
    index.check()
    index.store("w", prompt(0))
    assert index.match(prompt(0)) == {"w": 50}
    index.drop("w")
    index.check()
    assert index.size() == IndexSize(0, 0, 0, 0, 0, 0, index.size().evicted_holdings)


def test_a_store_that_is_too_large_by_itself_keeps_its_end() -> None:
    index = PrefixIndex(LIMIT_BYTES)
    index.store("w", prompt(1, 20_000))
    assert 0 < index.num_blocks("w") < 20_000
    index.check()


@pytest.mark.parametrize(("num_workers", "holders"), [(4, 1), (64, 4), (1000, 8)])
def test_the_estimate_is_near_what_is_allocated(num_workers: int, holders: int) -> None:
    rng = random.Random(5)
    tracemalloc.start()
    try:
        before, index = tracemalloc.get_traced_memory()[0], PrefixIndex()
        for seed in range(200):
            for worker in rng.sample(range(num_workers), holders):
                index.store(f"w{worker}", prompt(seed, 200))
            if seed % 2:
                index.match(prompt(seed, 200))
        weight = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert index.size().size_bytes == pytest.approx(weight, rel=0.4)


def test_a_limit_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="limit_bytes is 0"):
        PrefixIndex(0)
