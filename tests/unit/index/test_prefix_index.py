"""The index against a naive oracle: a set of blocks per worker and tier."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from armature.index.descent import descend
from armature.index.packing import pack_hashes, unpack_hashes
from armature.index.prefix_index import PrefixIndex
from armature.index.tiers import Tier

WORKERS = [f"w{number}" for number in range(5)]
BLOCKS = st.lists(st.integers(0, 40), max_size=20)


def naive_match(held: dict[str, set[int]], hashes: list[int]) -> dict[str, int]:
    depths: dict[str, int] = {}
    for worker_id, blocks in held.items():
        depth = 0
        while depth < len(hashes) and hashes[depth] in blocks:
            depth += 1
        if depth:
            depths[worker_id] = depth
    return depths


class AgainstOracle(RuleBasedStateMachine):
    """Any history of events leaves the index where plain sets are."""

    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex()
        self.held: dict[str, dict[Tier, set[int]]] = {}

    def tiers_of(self, worker_id: str) -> dict[Tier, set[int]]:
        return self.held.setdefault(worker_id, {tier: set() for tier in Tier})

    @rule(worker_id=st.sampled_from(WORKERS), blocks=BLOCKS, tier=st.sampled_from(Tier))
    def store(self, worker_id: str, blocks: list[int], tier: Tier) -> None:
        self.index.store(worker_id, blocks, tier)
        self.tiers_of(worker_id)[tier].update(blocks)

    @rule(worker_id=st.sampled_from(WORKERS), blocks=BLOCKS, tier=st.sampled_from(Tier))
    def remove(self, worker_id: str, blocks: list[int], tier: Tier) -> None:
        self.index.remove(worker_id, blocks, tier)
        if worker_id in self.held:
            self.held[worker_id][tier].difference_update(blocks)

    @rule(worker_id=st.sampled_from(WORKERS), tier=st.sampled_from([None, *Tier]))
    def clear(self, worker_id: str, tier: Tier | None) -> None:
        self.index.clear(worker_id, tier)
        for cleared in Tier if tier is None else [tier]:
            if worker_id in self.held:
                self.held[worker_id][cleared].clear()

    @rule(worker_id=st.sampled_from(WORKERS))
    def drop(self, worker_id: str) -> None:
        self.index.drop(worker_id)
        self.held.pop(worker_id, None)

    @rule(prompt=st.lists(st.integers(0, 40), max_size=40, unique=True), tier=st.sampled_from(Tier))
    def match(self, prompt: list[int], tier: Tier) -> None:
        expected = naive_match({worker_id: tiers[tier] for worker_id, tiers in self.held.items()}, prompt)
        found = self.index.match(prompt, tier)
        assert found == expected
        assert list(found.values()) == sorted(found.values(), reverse=True)

    @invariant()
    def agrees(self) -> None:
        self.index.check()
        assert sorted(self.index.worker_ids) == sorted(self.held)
        for worker_id, tiers in self.held.items():
            assert {tier: set(held) for tier, held in self.index.holdings(worker_id).items() if held} == {
                tier: blocks for tier, blocks in tiers.items() if blocks
            }
            assert self.index.num_blocks(worker_id) == sum(map(len, tiers.values()))
        size = self.index.size()
        assert size.holdings == sum(len(blocks) for tiers in self.held.values() for blocks in tiers.values())
        assert size.blocks == sum(len(set().union(*(t[tier] for t in self.held.values()))) for tier in Tier)


AgainstOracle.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestAgainstOracle = AgainstOracle.TestCase


@settings(max_examples=150, deadline=None)
@given(
    masks=st.lists(st.integers(0, 2**6 - 1), min_size=1, max_size=700),
    filler=st.integers(0, 400),
    base=st.integers(0, 2**6 - 1),
)
def test_runs_end_where_a_walk_block_by_block_says(masks: list[int], filler: int, base: int) -> None:
    """Long common stretches before and among arbitrary masks, holes included, cross every stretch boundary."""
    along = [base | 1] * filler + masks
    expected: list[tuple[int, int]] = []
    held = along[0]
    for depth in range(1, len(along) + 1):
        rest = held & along[depth] if depth < len(along) else 0
        if held & ~rest:
            expected.append((depth, held & ~rest))
        held = rest
    assert descend(dict(enumerate(along)), list(range(len(along)))) == expected


@pytest.mark.parametrize("hole", [0, 1, 7, 8, 9, 100, 263, 264, 265, 599])
def test_a_hole_ends_a_run_although_deeper_blocks_are_held(hole: int) -> None:
    index = PrefixIndex()
    prompt = list(range(1000, 1600))
    index.store("whole", prompt)
    index.store("holed", prompt)
    index.remove("holed", [prompt[hole]])
    expected = {"whole": 600} | ({"holed": hole} if hole else {})
    assert index.match(prompt) == expected


def test_a_slot_given_to_a_new_worker_knows_nothing_of_its_predecessor() -> None:
    index = PrefixIndex()
    index.store("old", [1, 2, 3])
    index.store("old", [9], Tier.G2)
    index.store("other", [1, 2])
    index.drop("old")
    index.store("new", [1])
    assert index.match([1, 2, 3]) == {"other": 2, "new": 1}
    assert index.match([9], Tier.G2) == {}
    index.check()


def test_masks_stay_as_wide_as_the_workers_that_are_there() -> None:
    index = PrefixIndex()
    for generation in range(200):
        index.store(f"worker-{generation}", [1])
        index.drop(f"worker-{generation}")
    index.store("last", [1])
    assert index._masks[Tier.G1] == {1: 1}


def test_a_stale_worker_is_counted_until_it_is_exact_again() -> None:
    index = PrefixIndex()
    index.add("w")
    index.mark("w", stale=True)
    assert index.is_stale("w") and index.size().stale_workers == 1
    index.mark("w", stale=False)
    assert not index.is_stale("w") and index.size().stale_workers == 0
    assert not index.is_stale("never heard of")


def test_an_empty_prompt_matches_nobody() -> None:
    index = PrefixIndex()
    index.store("w", [1])
    assert index.match([]) == {}


@given(st.lists(st.integers(0, 2**64 - 1)))
def test_hashes_travel_unchanged(hashes: list[int]) -> None:
    assert list(unpack_hashes(pack_hashes(hashes))) == hashes


def test_a_torn_list_of_hashes_is_refused() -> None:
    with pytest.raises(ValueError, match="9 bytes"):
        unpack_hashes(b"123456789")
