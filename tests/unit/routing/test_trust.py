"""Placement relies on the index as far as its sources can be trusted, and learns from what requests find."""

from armature.index.trust import TrustState
from armature.routing.decision import Placed
from tests.unit.routing.cell import cell, prompt, query


def test_a_prefix_on_a_worker_that_is_not_heard_counts_for_less() -> None:
    core = cell("d1", "d2")
    core.index.store("d1", prompt(500))
    core.trust.mark("d1", TrustState.STALE, 0.0)
    early = core.place(query("a"), 1.0)
    assert isinstance(early, Placed)
    assert (early.chosen.decode_id, early.overlap_tokens) == ("d1", 450)
    core.finish("gateway", "a")
    core.index.store("d2", prompt(300))
    core.trust.mark("d2", TrustState.EXACT, 0.0)
    late = core.place(query("b"), 600.0)
    assert isinstance(late, Placed)
    assert (late.chosen.decode_id, late.overlap_tokens) == ("d2", 300)


def test_what_was_placed_a_moment_ago_is_relied_on_whatever_the_index_is_worth() -> None:
    core = cell("d1", "d2")
    core.trust.mark("d1", TrustState.STALE, 0.0)
    core.trust.mark("d2", TrustState.STALE, 0.0)
    core.index.store("d1", prompt(200))
    first = core.place(query("a"), 600.0)
    second = core.place(query("b"), 600.0)
    assert isinstance(first, Placed)
    assert isinstance(second, Placed)
    assert second.chosen.decode_id == first.chosen.decode_id
    assert second.overlap_tokens == 490


def test_predictions_are_checked_against_what_the_first_token_says() -> None:
    core = cell("d1")
    core.index.store("d1", prompt(500))
    core.trust.mark("d1", TrustState.EXACT, 0.0)
    for number in range(50):
        core.place(query(f"r{number}"), number * 100.0)
        core.first_token("gateway", f"r{number}", cached_tokens=100)
        core.finish("gateway", f"r{number}")
    accuracy = core.trust.accuracy
    assert (accuracy.requests, accuracy.predicted, accuracy.actual) == (50, 50 * 490, 50 * 100)
    assert accuracy.missing == 50 * 390
    assert 0.2 < core.trust.factor("d1", 1e4) < 0.4
    last = core.place(query("last"), 1e4)
    assert isinstance(last, Placed)
    assert last.overlap_tokens < 200


def test_siblings_of_a_prompt_that_is_not_computed_yet_are_no_fault_of_the_index() -> None:
    core = cell("d1")
    core.trust.mark("d1", TrustState.EXACT, 0.0)
    core.index.store("d1", prompt(100))
    for name in ("a", "b"):
        core.place(query(name), 0.0)
        core.first_token("gateway", name, cached_tokens=100)
    assert (core.trust.accuracy.predicted, core.trust.accuracy.missing) == (200, 0)


def test_a_first_token_that_nobody_has_counted_or_asked_for_teaches_nothing() -> None:
    core = cell("d1")
    core.trust.mark("d1", TrustState.EXACT, 0.0)
    core.place(query("a"), 0.0)
    core.first_token("gateway", "a")
    core.first_token("gateway", "a", cached_tokens=5)
    core.first_token("gateway", "unknown", cached_tokens=5)
    assert core.trust.accuracy.requests == 0
