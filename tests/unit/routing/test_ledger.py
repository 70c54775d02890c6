"""The ledger: what a placement adds, what takes it away, and that nothing stays behind."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armature.routing import columns as at
from armature.routing.account import Account, Pace, Share
from armature.routing.decision import Placed
from armature.routing.ledger import Entry, Ledger
from armature.routing.router import RoutingCore
from tests.unit.routing.cell import ASSUMED, account, cell, load, placed, query, worker


def queue_s(core: RoutingCore, worker_id: str, now_s: float) -> float:
    return max(account(core, worker_id).busy_until_s - now_s, 0.0)


def test_placements_queue_up_and_time_works_them_off() -> None:
    core = cell("a1")
    for number in range(3):
        core.place(query(f"r{number}", 1000, seed=number), now_s=0.0)
    assert queue_s(core, "a1", 0.0) == pytest.approx(3.0)
    assert queue_s(core, "a1", 2.5) == pytest.approx(0.5)
    assert queue_s(core, "a1", 9.0) == 0.0


def test_a_report_replaces_the_guess_but_for_what_was_placed_just_now() -> None:
    core = cell("a1")
    core.place(query("old", 1000, seed=1), now_s=0.0)
    core.place(query("new", 1000, seed=2), now_s=0.98)
    core.report("a1", load(waiting_prefill_tokens=300, free_blocks=800), now_s=1.0)
    assert queue_s(core, "a1", 1.0) == pytest.approx(0.3 + 1.0)
    known = account(core, "a1")
    # 101 for the new prompt; whoever computes already has his.
    assert known.free_blocks == 800 - 101
    assert known.waiting_seqs == 1


def test_blocks_are_kept_for_those_who_wait_in_the_workers_own_line() -> None:
    core = cell("a1")
    for number, tokens in enumerate((1000, 500, 200)):
        core.place(query(f"r{number}", tokens, seed=number), now_s=0.0)
    core.report("a1", load(waiting_prefill_tokens=1200, waiting_seqs=2, free_blocks=800), now_s=1.0)
    assert account(core, "a1").free_blocks == 800 - 51 - 21
    # More wait than were placed here: all that is to be computed is taken to be theirs.
    core.report("a1", load(waiting_prefill_tokens=1200, waiting_seqs=4, free_blocks=800), now_s=2.0)
    assert account(core, "a1").free_blocks == 800 - 120


def test_a_cancelled_prompt_leaves_the_queue_and_a_computed_one_was_in_it() -> None:
    core = cell("a1")
    core.place(query("one", 1000, seed=1), now_s=0.0)
    core.place(query("two", 1000, seed=2), now_s=0.0)
    core.finish("gateway", "two")
    assert queue_s(core, "a1", 0.0) == pytest.approx(1.0)
    core.first_token("gateway", "one")
    assert queue_s(core, "a1", 0.0) == pytest.approx(1.0)
    assert account(core, "a1").running_seqs == 1
    core.finish("gateway", "one")
    assert account(core, "a1").running_seqs == 0


def test_the_first_token_releases_the_prefill_worker() -> None:
    core = cell("d1", "p1")
    assert placed(core.place(query(tokens=1000), now_s=0.0)) == ("d1", "p1")
    assert account(core, "p1").requests == 1
    assert queue_s(core, "p1", 0.0) == pytest.approx(0.99)
    assert queue_s(core, "d1", 0.0) == 0.0
    core.first_token("gateway", "r")
    core.first_token("gateway", "r")
    assert account(core, "p1").requests == 0
    assert (account(core, "d1").requests, account(core, "d1").running_seqs) == (1, 1)


def test_a_request_placed_again_counts_once() -> None:
    core = cell("a1", "a2")
    core.place(query("r"), now_s=0.0)
    assert placed(core.place(query("r", excluded=["a1"]), now_s=1.0)) == ("a2", "")
    assert core.requests_in_flight == 1
    assert (account(core, "a1").requests, account(core, "a2").requests) == (0, 1)


def test_what_an_owner_placed_is_forgotten_with_it() -> None:
    core = cell("a1")
    for number in range(3):
        core.place(query(f"r{number}", owner="one"), now_s=0.0)
    core.place(query("r0", owner="other"), now_s=0.0)
    assert core.forget("one") == ["r0", "r1", "r2"]
    assert core.requests_in_flight == 1
    assert core.forget("one") == []


def test_progress_of_strangers_is_ignored() -> None:
    core = cell("a1")
    core.first_token("gateway", "never heard of")
    core.finish("gateway", "never heard of")
    core.report("never heard of", load(), now_s=0.0)
    core.remove_worker("never heard of")
    assert core.requests_in_flight == 0


def test_entries_of_an_owner_that_never_tells_end_by_age() -> None:
    ledger, known = Ledger(max_age_s=10.0), Account(worker("a1"), Pace(ASSUMED.speeds))
    for name, placed_s in (("old", 0.0), ("young", 9.0), ("now", 11.0)):
        ledger.open(("o", name), Entry("a1", Share(placed_s, 1.0, 1000, 0, 5)), known)
    assert len(ledger) == 2
    assert known.requests == 2


EVENTS = st.tuples(
    st.sampled_from(["place", "first", "finish", "forget", "report", "leave", "join"]),
    st.integers(0, 7),
    st.integers(1, 3000),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(EVENTS, max_size=60))
def test_when_all_has_ended_nothing_is_left(events: list[tuple[str, int, int]]) -> None:
    names = ["d1", "d2", "p1", "p2"]
    core, now_s = cell(*names), 0.0
    for event, number, amount in events:
        now_s += 0.01
        name, owner, request_id = names[number % 4], f"o{number % 2}", f"r{number}"
        if event == "place":
            outcome = core.place(query(request_id, amount, seed=number, owner=owner), now_s)
            assert isinstance(outcome, Placed) or not any(w.worker_id.startswith("d") for w in core.workers)
        elif event == "first":
            core.first_token(owner, request_id)
        elif event == "finish":
            core.finish(owner, request_id)
        elif event == "forget":
            core.forget(owner)
        elif event == "report":
            core.report(name, load(running_seqs=0, waiting_prefill_tokens=amount), now_s)
        elif event == "leave":
            core.remove_worker(name)
        else:
            core.put_worker(worker(name))
    core.forget("o0")
    core.forget("o1")
    assert core.requests_in_flight == 0
    for known in core._accounts.values():
        known.report(load(), now_s, 0.0)
        assert (known.requests, known.running_seqs, known.waiting_seqs, known.busy_until_s) == (0, 0, 0, now_s)
        assert known.free_blocks == 1000
        assert known.column[at.PREFILL_TOKENS] == 0
