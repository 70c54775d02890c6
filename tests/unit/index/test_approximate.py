"""What is assumed of engines that tell nothing: bounded by time and by the pool, whatever is routed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armature.index.approximate import ApproximateHoldings
from armature.index.change import Change, ChangeKind
from armature.index.prefix_index import PrefixIndex
from armature.index.tiers import Tier


def holdings(ttl_s: float = 100.0, num_blocks: int = 10) -> ApproximateHoldings:
    made = ApproximateHoldings(ttl_s)
    made.put_worker("w", num_blocks)
    return made


def stored(*hashes: int) -> Change:
    return Change(ChangeKind.STORED, "w", Tier.G1, list(hashes))


def removed(*hashes: int) -> Change:
    return Change(ChangeKind.REMOVED, "w", Tier.G1, list(hashes))


def test_a_prompt_is_told_once() -> None:
    made = holdings()
    assert made.note("w", (1, 2, 3), 0.0) == [stored(1, 2, 3)]
    assert made.note("w", (1, 2, 3), 1.0) == []
    assert made.note("w", (1, 2, 4), 2.0) == [stored(4)]


def test_nothing_is_assumed_of_workers_that_are_unknown_or_gone() -> None:
    made = holdings()
    assert made.note("x", (1,), 0.0) == []
    made.note("w", (1,), 0.0)
    made.remove_worker("w")
    assert (made.note("w", (2,), 0.0), made.expire(1e9)) == ([], [])


def test_what_is_not_asked_for_within_the_time_to_live_expires() -> None:
    made = holdings(ttl_s=10.0)
    made.note("w", (1, 2, 3), 0.0)
    made.note("w", (1, 4), 5.0)
    assert made.expire(9.9) == []
    assert made.expire(10.0) == [removed(3, 2)]
    assert made.expire(15.0) == [removed(4, 1)]


def test_a_full_pool_loses_the_ends_of_the_prompts_asked_for_longest_ago() -> None:
    made = holdings(num_blocks=6)
    made.note("w", (1, 2, 3), 0.0)
    made.note("w", (4, 5, 6), 1.0)
    assert made.note("w", (7, 8), 2.0) == [removed(3, 2), stored(7, 8)]
    assert made.held("w") == [7, 8, 4, 5, 6, 1]


def test_of_a_prompt_longer_than_the_pool_the_beginning_is_held() -> None:
    made = holdings(num_blocks=3)
    assert made.note("w", range(9), 0.0) == [stored(0, 1, 2)]


def test_noting_what_is_held_again_elsewhere_leaves_the_same_order() -> None:
    made, other = holdings(num_blocks=6), holdings(num_blocks=6)
    for second, prompt in enumerate(((1, 2, 3), (4, 5), (1, 9))):
        made.note("w", prompt, second)
    other.note("w", made.held("w"), 0.0)
    assert other.held("w") == made.held("w")
    assert other.note("w", (20, 21), 1.0) == made.note("w", (20, 21), 3.0)


def test_a_time_to_live_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="ttl_s"):
        ApproximateHoldings(0.0)


@given(
    st.lists(st.tuples(st.lists(st.integers(0, 30), max_size=12, unique=True), st.floats(0, 5)), max_size=30),
    st.integers(1, 15),
)
def test_an_index_that_follows_the_changes_holds_what_is_assumed(
    prompts: list[tuple[list[int], float]], num_blocks: int
) -> None:
    made, index, now_s = holdings(ttl_s=10.0, num_blocks=num_blocks), PrefixIndex(), 0.0
    for prompt, pause_s in prompts:
        now_s += pause_s
        for change in [*made.expire(now_s), *made.note("w", prompt, now_s)]:
            index.apply(change)
        held = made.held("w")
        assert set(index.holdings("w").get(Tier.G1, ())) == set(held)
        assert len(held) <= num_blocks
        assert held[: min(len(prompt), num_blocks)] == prompt[:num_blocks]
    index.check()
