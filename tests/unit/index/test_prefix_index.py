"""The index against a naive oracle: a set of blocks per worker and tier."""

from itertools import accumulate, pairwise
from operator import and_

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from armature.index.descent import descend, walk
from armature.index.packing import pack_hashes, unpack_hashes
from armature.index.prefix_index import PrefixIndex, Reach
from armature.index.tiers import Tier

TIERS = st.sampled_from([Tier.G1, Tier.G1, *Tier])
WORKERS = [f"w{number}" for number in range(5)]
SOURCES = ["node-0", "node-1", "w4"]
"""What they hold in lower tiers may count for others; one is a worker, too."""
IDLE = [f"idle-{number}" for number in range(62)]
"""They hold nothing and have the first slots, so that masks of the others are on both sides of 64 bits."""

HOLDERS = [*WORKERS, *SOURCES[:2]]

LENGTH = 14
FORKS = {1: (0, 3), 2: (0, 3), 3: (0, 9), 4: (1, 6)}
"""Prompts that share the first blocks of another one, and how many; prompts 0 and 5 share nothing with any."""


def chained(prompt: int, length: int = LENGTH) -> list[int]:
    """Hashes of one of six prompts: each of a block names all before it."""
    other, shared = FORKS.get(prompt, (0, 0))
    return [
        *(chained(other, min(shared, length)) if shared else ()),
        *(100 * prompt + depth for depth in range(shared, length)),
    ]


ALL_BLOCKS = sorted({block for prompt in range(6) for block in chained(prompt)})
PROMPTS = st.builds(chained, st.integers(0, 5), st.integers(0, LENGTH))
BLOCKS = st.one_of(
    PROMPTS, PROMPTS.map(lambda prompt: prompt[::-1]), st.lists(st.sampled_from(ALL_BLOCKS), max_size=5),
    PROMPTS.flatmap(st.permutations),
)  # fmt: skip


def naive_depth(blocks: set[int], hashes: list[int]) -> int:
    return next((depth for depth, block in enumerate(hashes) if block not in blocks), len(hashes))


def naive_match(held: dict[str, set[int]], hashes: list[int]) -> dict[str, int]:
    depths = {worker_id: naive_depth(blocks, hashes) for worker_id, blocks in held.items()}
    return {worker_id: depth for worker_id, depth in depths.items() if depth}


class AgainstOracle(RuleBasedStateMachine):
    """Any history of events leaves the index where plain sets are."""

    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex()
        self.held: dict[str, dict[Tier, set[int]]] = {}
        self.attached: dict[str, set[str]] = {}
        self.ignored: frozenset[str] = frozenset()
        for worker_id in IDLE:
            self.index.add(worker_id)
            self.tiers_of(worker_id)

    def tiers_of(self, worker_id: str) -> dict[Tier, set[int]]:
        return self.held.setdefault(worker_id, {tier: set() for tier in Tier})

    @rule(worker_id=st.sampled_from(HOLDERS), blocks=BLOCKS, tier=TIERS)
    def store(self, worker_id: str, blocks: list[int], tier: Tier) -> None:
        self.index.store(worker_id, blocks, tier)
        self.tiers_of(worker_id)[tier].update(blocks)

    @rule(worker_id=st.sampled_from(HOLDERS), blocks=BLOCKS, tier=TIERS)
    def remove(self, worker_id: str, blocks: list[int], tier: Tier) -> None:
        self.index.remove(worker_id, blocks, tier)
        if worker_id in self.held:
            self.held[worker_id][tier].difference_update(blocks)

    @rule(worker_id=st.sampled_from(HOLDERS), tier=st.sampled_from([None, *Tier]))
    def clear(self, worker_id: str, tier: Tier | None) -> None:
        self.index.clear(worker_id, tier)
        for cleared in Tier if tier is None else [tier]:
            if worker_id in self.held:
                self.held[worker_id][cleared].clear()

    @rule(worker_id=st.sampled_from([*HOLDERS, IDLE[0]]))
    def drop(self, worker_id: str) -> None:
        self.index.drop(worker_id)
        self.held.pop(worker_id, None)
        self.attached.pop(worker_id, None)

    @rule(prompt=PROMPTS)
    def fill(self, prompt: list[int]) -> None:
        """As a common head does, it has masks of many workers."""
        for worker_id in IDLE:
            self.index.store(worker_id, prompt)
            self.tiers_of(worker_id)[Tier.G1].update(prompt)

    @rule(prompt=PROMPTS, tier=TIERS)
    def match(self, prompt: list[int], tier: Tier) -> None:
        found = self.index.match(prompt, tier)
        assert found == naive_match({worker_id: tiers[tier] for worker_id, tiers in self.held.items()}, prompt)

    @rule(source_id=st.sampled_from(SOURCES), worker_ids=st.sets(st.sampled_from([*WORKERS, *SOURCES, IDLE[0]])))
    def attach(self, source_id: str, worker_ids: set[str]) -> None:
        self.index.attach(source_id, worker_ids)
        self.tiers_of(source_id)
        self.attached[source_id] = worker_ids

    @rule(source_ids=st.frozensets(st.sampled_from(SOURCES)))
    def ignore(self, source_ids: frozenset[str]) -> None:
        self.index.ignore(source_ids)
        self.ignored = source_ids

    @rule(prompt=PROMPTS)
    def reach(self, prompt: list[int]) -> None:
        levels = [self.naive_reach(prompt, lowest) for lowest in Tier]
        expected: dict[Tier, dict[str, int]] = {}
        for tier, (above, below) in zip((Tier.G2, Tier.G3, Tier.G4), pairwise(levels), strict=True):
            further = {worker_id: depth for worker_id, depth in below.items() if depth > above[worker_id]}
            if further:
                expected[tier] = further
        assert self.index.reach(prompt) == Reach(self.index.match(prompt), expected)

    def naive_reach(self, prompt: list[int], lowest: Tier) -> dict[str, int]:
        """By everybody who is known, with what is in the tiers from G1 to `lowest` of whom it reads from."""
        depths: dict[str, int] = {}
        for worker_id, tiers in self.held.items():
            usable = set(tiers[Tier.G1])
            readable = [source_id for source_id, readers in self.attached.items() if worker_id in readers]
            for source_id in {*readable, worker_id} - self.ignored:
                usable.update(*(self.held[source_id][tier] for tier in Tier if Tier.G1 < tier <= lowest))
            depths[worker_id] = naive_depth(usable, prompt)
        return depths

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


AgainstOracle.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestAgainstOracle = AgainstOracle.TestCase


def naive_ends(along: list[int]) -> list[tuple[int, int]]:
    ends: list[tuple[int, int]] = []
    held = along[0]
    for depth in range(1, len(along) + 1):
        rest = held & along[depth] if depth < len(along) else 0
        if held & ~rest:
            ends.append((depth, held & ~rest))
        held = rest
    return ends


MASKS = st.lists(st.integers(0, 2**6 - 1), min_size=1, max_size=700)


@settings(max_examples=150, deadline=None)
@given(masks=MASKS, filler=st.integers(0, 400), base=st.integers(0, 2**6 - 1))
def test_a_walk_ends_runs_where_they_end_and_a_descent_where_masks_only_shrink(
    masks: list[int], filler: int, base: int
) -> None:
    """Long common stretches before and among arbitrary masks, holes included, cross every stretch boundary."""
    along = [base | 1] * filler + masks
    expected = naive_ends(along)
    assert walk(lambda part: [along[depth] for depth in part], range(len(along)), 1, along[0]) == expected
    assert descend(dict(enumerate(accumulate(along, and_))), range(len(along))) == expected


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 900), st.integers(0, 2**70)), min_size=1, max_size=12))
def test_a_descent_finds_every_end_however_far_apart(parts: list[tuple[int, int]]) -> None:
    along = list(accumulate([mask | 1 << 70 for length, mask in parts for _ in range(length)], and_))
    assert descend(dict(enumerate(along)), range(len(along))) == naive_ends(along)


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
    fresh = PrefixIndex()
    fresh.store("last", [1])
    assert index.size() == fresh.size()


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
