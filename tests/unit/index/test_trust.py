"""Trust follows the state of a source and what predictions come to, and never leaves [0, 1]."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armature.index.change import Change, ChangeKind
from armature.index.tiers import Tier
from armature.index.trust import Accuracy, Trust, TrustPolicy, TrustState

POLICY = TrustPolicy()


def trust_in(state: TrustState, at_s: float = 0.0) -> Trust:
    trust = Trust()
    trust.mark("w", state, at_s)
    return trust


@pytest.mark.parametrize(
    ("state", "after_s", "factor"),
    [
        (TrustState.EXACT, 1e6, 1.0),
        (TrustState.REPAIRING, 1e6, POLICY.repairing_factor),
        (TrustState.ASSUMED, 1e6, POLICY.assumed_factor),
        (TrustState.STALE, 0.0, POLICY.repairing_factor),
        (TrustState.STALE, POLICY.stale_half_life_s, POLICY.repairing_factor / 2),
        (TrustState.STALE, 1e6, 0.0),
    ],
)
def test_a_state_has_its_factor_before_anything_is_measured(state: TrustState, after_s: float, factor: float) -> None:
    assert trust_in(state).factor("w", after_s) == pytest.approx(factor)


def test_only_those_in_doubt_are_doubted() -> None:
    trust = trust_in(TrustState.EXACT)
    trust.mark("x", TrustState.REPAIRING, 0.0)
    trust.mark("y", TrustState.STALE, 0.0)
    silent = POLICY.repairing_factor / 2
    assert trust.doubts(POLICY.stale_half_life_s) == {"x": pytest.approx(0.9), "y": pytest.approx(silent)}
    trust.mark("x", TrustState.EXACT, 0.0)
    trust.forget("y")
    assert not trust.doubts(POLICY.stale_half_life_s)


@pytest.mark.parametrize("state", list(TrustState))
def test_doubts_are_the_factors_as_of_the_last_second(state: TrustState) -> None:
    trust, now_s = trust_in(state), 0.0
    for actual in [0, 1000, 100, 1000, 1000, 0]:
        now_s += 1.0
        trust.observe("w", 1000, actual)
        assert trust.doubts(now_s).get("w", 1.0) == trust.factor("w", now_s)
        assert trust.doubts(now_s + 0.5).get("w", 1.0) == trust.factor("w", now_s)


def test_an_exact_source_that_is_wrong_again_and_again_is_believed_less_and_cured_believed_again() -> None:
    trust = trust_in(TrustState.EXACT)
    for _ in range(50):
        trust.observe("w", 1000, 250)
    assert trust.factor("w", 0.0) == pytest.approx(0.25, abs=0.1)
    for _ in range(500):
        trust.observe("w", 1000, 1000)
    assert trust.factor("w", 0.0) == 1.0


def test_a_stale_source_that_is_right_all_the_same_is_believed_again() -> None:
    trust = trust_in(TrustState.STALE)
    late_s = 10 * POLICY.stale_half_life_s
    assert trust.factor("w", late_s) < 0.01
    for _ in range(50):
        trust.observe("w", 1000, 1000)
    assert trust.factor("w", late_s) > 0.9


def test_what_was_measured_in_one_state_says_nothing_about_the_next() -> None:
    trust = trust_in(TrustState.STALE)
    trust.observe("w", 100_000, 0)
    trust.mark("w", TrustState.EXACT, 1.0)
    assert trust.factor("w", 1.0) == 1.0


def test_a_repair_that_fails_makes_nothing_younger() -> None:
    trust = trust_in(TrustState.STALE)
    trust.mark("w", TrustState.STALE, 60.0)
    assert trust.factor("w", POLICY.stale_half_life_s) == pytest.approx(POLICY.repairing_factor / 2)
    trust.mark("w", TrustState.EXACT, 200.0)
    trust.mark("w", TrustState.STALE, 200.0)
    assert trust.factor("w", 200.0) == pytest.approx(POLICY.repairing_factor)


def test_more_than_was_predicted_does_not_make_up_for_what_was_missing() -> None:
    trust = trust_in(TrustState.EXACT)
    trust.observe("w", 10_000, 0)
    doubted = trust.factor("w", 0.0)
    trust.observe("w", 0, 10_000)
    assert trust.factor("w", 0.0) == doubted < 1
    assert trust.accuracy == Accuracy(2, predicted=10_000, actual=10_000, missing=10_000, unforeseen=10_000)


def test_a_few_blocks_that_were_evicted_while_a_request_waited_are_nobodys_fault() -> None:
    trust = trust_in(TrustState.EXACT)
    for _ in range(100):
        trust.observe("w", 3200, 3200)
    trust.observe("w", 3200, 3184)
    assert trust.factor("w", 0.0) == 1.0


def test_when_nobody_tells_changes_all_is_stale_but_what_was_only_assumed() -> None:
    trust = trust_in(TrustState.EXACT)
    trust.mark("a", TrustState.ASSUMED, 0.0)
    trust.silence(5.0)
    assert [trust.state(worker_id) for worker_id in trust.worker_ids] == [TrustState.STALE, TrustState.ASSUMED]
    assert trust.factor("w", 5.0 + POLICY.stale_half_life_s) == pytest.approx(POLICY.repairing_factor / 2)


def test_changes_of_the_index_are_followed() -> None:
    trust = Trust()
    for kind in (ChangeKind.REPAIRING, ChangeKind.STORED, ChangeKind.EXACT):
        trust.apply(Change(kind, "w", Tier.G1, (1,)), 0.0)
    assert (trust.state("w"), trust.count(TrustState.EXACT)) == (TrustState.EXACT, 1)
    trust.apply(Change(ChangeKind.DROPPED, "w"), 0.0)
    assert trust.worker_ids == []
    assert trust.factor("w", 0.0) == 1.0


@pytest.mark.parametrize(("predicted", "actual"), [(-1, 0), (0, -1)])
def test_negative_tokens_are_refused(predicted: int, actual: int) -> None:
    with pytest.raises(ValueError, match="neither may be negative"):
        Trust().observe("w", predicted, actual)


@pytest.mark.parametrize(
    "wrong",
    [{"repairing_factor": 1.1}, {"assumed_factor": float("nan")}, {"stale_half_life_s": 0.0}, {"tolerance": -1}],
)
def test_wrong_policies_name_the_key(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TrustPolicy(**wrong)


ACTS = st.one_of(
    st.tuples(st.just("mark"), st.sampled_from(TrustState)),
    st.tuples(st.just("observe"), st.tuples(st.integers(0, 10**7), st.integers(0, 10**7))),
    st.tuples(st.just("silence"), st.none()),
)


@given(st.lists(ACTS, max_size=40))
def test_the_factor_stays_between_nothing_and_all(acts: list[tuple[str, object]]) -> None:
    trust = trust_in(TrustState.STALE)
    for now_s, (name, argument) in enumerate(acts):
        if isinstance(argument, TrustState):
            trust.mark("w", argument, now_s)
        elif isinstance(argument, tuple):
            trust.observe("w", *argument)
        elif name == "silence":
            trust.silence(now_s)
        assert 0 <= trust.factor("w", now_s) <= 1
    assert trust.accuracy.predicted - trust.accuracy.missing + trust.accuracy.unforeseen == trust.accuracy.actual


def test_a_kv_offload_that_has_not_what_it_tells_is_distrusted_until_its_events_are_taken_in_anew() -> None:
    trust = trust_in(TrustState.EXACT)
    for _ in range(3):
        assert trust.distrusted({"w"}, 0.0) == frozenset()
        trust.answered("w", 2000, 0)
    assert trust.distrusted({"w", "unknown"}, 0.0) == {"w"}
    assert trust.distrusted({"x"}, 0.0) == frozenset(), "only of those that are asked about"
    # Time heals nothing, and neither does silence.
    assert trust.distrusted({"w"}, 1e6) == {"w"}
    trust.mark("w", TrustState.REPAIRING, 1e6)
    trust.mark("w", TrustState.EXACT, 1e6)
    assert trust.distrusted({"w"}, 1e6) == frozenset()
    assert trust.accuracy == Accuracy(), "what devices hold is counted apart"


@pytest.mark.parametrize(("found", "is_distrusted"), [(2000, False), (1990, False), (1200, False), (400, True)])
def test_a_kv_offload_from_which_blocks_go_now_and_then_is_believed(found: int, is_distrusted: bool) -> None:
    trust = trust_in(TrustState.EXACT)
    for _ in range(50):
        trust.answered("w", 2000, found)
    assert bool(trust.distrusted({"w"}, 0.0)) is is_distrusted


def test_a_kv_offload_that_is_silent_for_long_is_distrusted() -> None:
    trust = trust_in(TrustState.STALE)
    assert not trust.distrusted({"w"}, 1.0)
    assert trust.distrusted({"w"}, 2 * POLICY.stale_half_life_s) == {"w"}
    with pytest.raises(ValueError, match="neither may be negative"):
        trust.answered("w", -1, 0)
    with pytest.raises(ValueError, match="least_factor"):
        TrustPolicy(least_factor=1.5)
