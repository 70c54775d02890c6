"""What had better be read than computed, and how long to wait for it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armature.blocks.events import KvEventKind
from armature.blocks.hashing import BlockDigest, BlockHasher, pack_hashes
from armature.index.tiers import Tier
from armature.performance.fit import StepFit
from armature.performance.linear import LinearModel
from armature.performance.step import StepShape
from armature.scheduling.lower_tiers import LowerTiers, TierChange, TierSpeed
from armature.scheduling.patience import Patience

HASHER = BlockHasher(b"secret", 16)
DIGESTS = HASHER.extend(HASHER.root("m"), [7] * 16 * 20)
COSTS = LinearModel(fixed_s=0.01, decode_s=0.001, context_token_s=0.0, prefill_token_s=0.0005, prefill_pair_s=0.0)
BLOCK_BYTES = 1_000_000


def measured() -> StepFit:
    """An engine that computes a block in about 8.3 ms."""
    fit = StepFit()
    for _ in range(3):
        for tokens in (64, 128, 256, 512):
            shape = StepShape(0, 0, tokens, float(tokens * tokens))
            fit.observe(shape, COSTS.step_s(shape))
            fit.observe(StepShape(1, 100), COSTS.step_s(StepShape(1, 100)))
    assert fit.model is not None
    return fit


def tiers(fit: StepFit | None = None) -> LowerTiers:
    return LowerTiers(fit or StepFit(), block_size=16, block_bytes=BLOCK_BYTES, chunk_tokens=512)


def held(lower: LowerTiers, tier: Tier, digests: list[BlockDigest]) -> None:
    lower.apply([TierChange(KvEventKind.STORED, tier, pack_hashes(digests))])


def test_reading_ends_at_the_first_block_that_is_nowhere():
    lower = tiers()
    held(lower, Tier.G2, DIGESTS[:3] + DIGESTS[4:])
    assert lower.num_worth_reading(DIGESTS, 0) == 3
    assert lower.num_worth_reading(DIGESTS[3:], 3) == 0
    assert lower.num_worth_reading(DIGESTS[4:], 4) == 16


def test_a_block_is_held_until_the_last_tier_has_lost_it():
    lower = tiers()
    held(lower, Tier.G2, DIGESTS[:2])
    held(lower, Tier.G3, DIGESTS[:1])
    lower.apply([TierChange(KvEventKind.CLEARED, Tier.G2)])
    assert [lower.holds(digest) for digest in DIGESTS[:2]] == [True, False]
    lower.apply([TierChange(KvEventKind.REMOVED, Tier.G3, pack_hashes(DIGESTS[:1]))])
    assert len(lower) == 0


def test_a_slow_tier_is_read_only_as_far_as_it_saves_time():
    lower = tiers(measured())
    held(lower, Tier.G2, DIGESTS[:10])
    held(lower, Tier.G4, DIGESTS[10:])
    lower.measured(Tier.G2, TierSpeed(1e9))
    assert lower.num_worth_reading(DIGESTS, 0) == 20, "what is not measured is tried"
    lower.measured(Tier.G4, TierSpeed(BLOCK_BYTES / 0.1))
    assert lower.num_worth_reading(DIGESTS, 0) == 10
    lower.measured(Tier.G4, TierSpeed(1e9, latency_s=0.02))
    assert lower.num_worth_reading(DIGESTS, 0) == 20
    assert lower.num_worth_reading(DIGESTS[:11], 0) == 10, "one block is not worth the way to a far tier"


def test_a_tier_that_was_too_slow_is_tried_again_some_time():
    lower = tiers(measured())
    held(lower, Tier.G3, DIGESTS)
    lower.measured(Tier.G3, TierSpeed(BLOCK_BYTES / 0.1))
    counts = [lower.num_worth_reading(DIGESTS, 0) for _ in range(40)]
    assert counts[:20] == [0] * 20
    assert counts[-1] == 20


@given(
    st.lists(
        st.tuples(st.sampled_from(KvEventKind), st.sampled_from([*list(Tier)[1:], None]), st.integers(0, 9)),
        max_size=60,
    )
)
def test_it_holds_what_a_set_for_each_tier_would(changes: list[tuple[KvEventKind, Tier | None, int]]):
    lower = tiers()
    naive: dict[Tier, set[int]] = {tier: set() for tier in Tier}
    for kind, tier, number in changes:
        hashes = b"" if kind is KvEventKind.CLEARED else pack_hashes([DIGESTS[number]])
        lower.apply([TierChange(KvEventKind.CLEARED if tier is None else kind, tier, hashes)])
        if tier is None:
            naive = {tier: set() for tier in Tier}
        elif kind is KvEventKind.STORED:
            naive[tier].add(number)
        elif kind is KvEventKind.REMOVED:
            naive[tier].discard(number)
        else:
            naive[tier].clear()
    union = set[int]().union(*naive.values())
    assert [number for number in range(10) if lower.holds(DIGESTS[number])] == sorted(union)
    assert len(lower) == len(union)


def patience(costs: LinearModel | None = COSTS, num_blocks: int = 10) -> Patience:
    return Patience(costs, block_size=16, first_block=0, num_blocks=num_blocks, unknown_s=3.0)


def test_all_together_are_waited_for_no_longer_than_computing_all_would_take():
    waiting = patience()
    assert waiting.deadline_s(0, 100.0) == pytest.approx(100.0 + 0.01 + 160 * 0.0005)
    assert waiting.deadline_s(1, 100.08) == pytest.approx(100.09)


def test_once_most_has_come_the_rest_is_not_waited_for_longer_than_it_takes_to_compute():
    waiting = patience()
    waiting.deadline_s(0, 100.0)
    assert waiting.deadline_s(9, 100.001) == pytest.approx(100.001 + 0.01 + 16 * 0.0005)


def test_without_measured_steps_there_is_a_fixed_limit():
    assert patience(None).deadline_s(0, 100.0) == 103.0


@given(st.lists(st.floats(0.0, 0.05), min_size=1, max_size=10))
def test_a_stalling_source_never_costs_more_than_computing_all_again(gaps: list[float]):
    waiting = patience()
    now_s, deadline_s = 50.0, waiting.deadline_s(0, 50.0)
    all_s = deadline_s - now_s
    for landed, gap in enumerate(gaps, 1):
        if now_s + gap > deadline_s:
            break
        now_s += gap
        deadline_s = waiting.deadline_s(landed, now_s)
    assert deadline_s - 50.0 <= all_s + 1e-9
