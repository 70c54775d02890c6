"""Holes are found by the first match and by those that gallop: after links were made, broken and made again."""

import random

import pytest

from armature.index.prefix_index import PrefixIndex, Reach
from armature.index.tiers import Tier

PROMPT = list(range(1000, 1600))


@pytest.mark.parametrize("order", [1, -1], ids=["heads first", "tails first"])
@pytest.mark.parametrize("hole", [0, 1, 7, 8, 9, 100, 263, 264, 265, 599])
def test_a_hole_that_comes_and_goes_is_seen_by_every_match(hole: int, order: int) -> None:
    index = PrefixIndex()
    for worker_id in ("whole", "holed"):
        index.store(worker_id, PROMPT[::order])
    for _ in range(2):
        assert index.match(PROMPT) == {"whole": 600, "holed": 600}
        index.remove("holed", [PROMPT[hole]])
        assert index.match(PROMPT) == {"whole": 600} | ({"holed": hole} if hole else {})
        index.store("holed", [PROMPT[hole]])
        index.check()


def test_a_hole_that_nobody_fills_hides_what_is_behind_it_until_it_is_stored_again() -> None:
    index = PrefixIndex()
    for worker_id in ("a", "b"):
        index.store(worker_id, PROMPT)
    index.match(PROMPT)
    for worker_id in ("a", "b"):
        index.remove(worker_id, PROMPT[50:60])
    assert index.match(PROMPT) == {"a": 50, "b": 50}
    index.store("b", PROMPT[50:60])
    assert index.match(PROMPT) == {"b": 600, "a": 50}
    index.check()


def test_a_worker_that_tells_blocks_in_any_order_is_credited_with_what_it_can_use() -> None:
    index, rng = PrefixIndex(), random.Random(1)
    index.store("first", PROMPT)
    index.match(PROMPT)
    shuffled = rng.sample(PROMPT, len(PROMPT))
    told = set[int]()
    for start in range(0, 600, 7):
        index.store("later", shuffled[start : start + 7])
        told.update(shuffled[start : start + 7])
        usable = next((depth for depth, block in enumerate(PROMPT) if block not in told), 600)
        assert index.match(PROMPT).get("later", 0) == usable
    index.check()


def test_prompts_that_fork_are_told_apart_behind_the_fork() -> None:
    index = PrefixIndex()
    forks = [[*PROMPT[:300], *range(start, start + 50)] for start in (10_000, 20_000, 30_000)]
    for number, fork in enumerate(forks):
        index.store(f"w{number}", fork)
    for _ in range(2):
        for number, fork in enumerate(forks):
            others = {f"w{other}": 300 for other in range(3) if other != number}
            assert index.match(fork) == {f"w{number}": 350, **others}
    index.drop("w1")
    assert index.match(forks[1]) == {"w0": 300, "w2": 300}
    index.check()


@pytest.mark.parametrize("wrong", [[5, 5, 5], [3, 1, 2], [2, 1], [1, 4, 3]])
def test_hashes_that_are_no_chain_break_nothing(wrong: list[int]) -> None:
    index = PrefixIndex()
    index.store("w", range(6))
    index.match(wrong)
    index.match([0, *wrong])
    index.check()
    index.remove("w", wrong)
    index.check()
    index.drop("w")
    assert index.size().linked_blocks == 0


def test_blocks_of_lower_tiers_continue_what_is_in_device_memory() -> None:
    index = PrefixIndex()
    index.store("w", PROMPT[:10])
    index.store("w", PROMPT[5:100], Tier.G2)
    index.store("w", PROMPT[100:200], Tier.G4)
    index.store("cold", PROMPT[:300], Tier.G3)
    index.store("torn", PROMPT[1:], Tier.G2)
    index.store("warm", PROMPT[:20])
    lower = {Tier.G2: {"w": 100}, Tier.G3: {"cold": 300}, Tier.G4: {"w": 200}}
    assert index.reach(PROMPT) == Reach({"warm": 20, "w": 10}, lower)
    assert index.match(PROMPT) == {"warm": 20, "w": 10}
    assert index.reach([]) == Reach({}, {})
