"""Submitting to a cell that is busy: what is placed, what waits and for how long, what is refused and when."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armature.routing.decision import Placed, Query, Rejected, RejectionCode
from armature.routing.hints import Hints
from armature.routing.policy import Policy
from armature.routing.queueing.dispatcher import Dispatcher
from armature.routing.queueing.gates import Always, PrefillBatches, Wait
from armature.routing.queueing.outcome import Outcome, Queued, Shed
from armature.routing.queueing.settings import QueuePolicy
from armature.routing.router import RoutingCore
from armature.routing.worker import Worker
from tests.unit.routing.cell import POLICY, cell, load, prompt, query, worker

QUEUE = replace(POLICY.queue, gate=Wait(below_s=0.5))


def busy(*names: str | Worker, queue: QueuePolicy = QUEUE, policy: Policy = POLICY, seconds: float = 2.0) -> Dispatcher:
    """A cell in which every worker has so many seconds of prompts to compute: 1,000 tokens are one."""
    core = cell(*(names or ("a1",)), policy=replace(policy, queue=queue))
    for one in core.workers:
        core.report(one.worker_id, load(waiting_prefill_tokens=1000 * seconds), now_s=0.0)
    return Dispatcher(core)


def ask(name: str, tokens: int = 500, tenant: str = "", priority: int = 0, target_s: float = 0.0) -> Query:
    """Requests with nothing in common."""
    hints = Hints(priority=priority, ttft_target_s=target_s)
    return replace(query(name, tokens, hashes=(), hints=hints), tenant=tenant)


def told(outcomes: list[Outcome]) -> list[tuple[str, str]]:
    """Who, and what: the worker, or why not."""
    return [(one.query.request_id, _word(one)) for one in outcomes]


def _word(one: Outcome) -> str:
    if isinstance(one.answer, Placed):
        return one.answer.chosen.decode_id
    if isinstance(one.answer, Queued):
        return "queued"
    return one.shed.value if one.shed else one.answer.code.value


# --- placed or queued


def test_an_idle_cell_places_at_once() -> None:
    dispatcher = busy(seconds=0.0)
    assert told(dispatcher.submit(ask("r"), 0.0)) == [("r", "a1")]
    assert dispatcher.next_wake_s(0.0) is None
    assert len(dispatcher) == 0


def test_while_every_worker_has_enough_to_do_requests_wait_until_one_has_not() -> None:
    dispatcher = busy("a1", "a2")
    (queued,) = dispatcher.submit(ask("r"), 0.0)
    assert isinstance(queued.answer, Queued)
    assert not queued.is_final
    assert dispatcher.next_wake_s(0.0) == pytest.approx(1.5)
    assert dispatcher.drain(1.4) == []
    dispatcher.core.report("a2", load(waiting_prefill_tokens=100), 1.4)
    (placed,) = dispatcher.drain(1.4)
    assert told([placed]) == [("r", "a2")]
    assert placed.waited_s == pytest.approx(1.4)
    assert placed.reason.endswith("; waited 1.400 s")
    assert dispatcher.core.requests_in_flight == 1


def test_one_worker_that_is_free_is_enough() -> None:
    dispatcher = busy("a1", "a2")
    dispatcher.core.report("a2", load(), 0.0)
    assert told(dispatcher.submit(ask("r"), 0.0)) == [("r", "a2")]


def test_time_alone_opens_the_gate_at_the_told_moment() -> None:
    dispatcher = busy()
    dispatcher.submit(ask("r"), 0.1)
    wake_s = dispatcher.next_wake_s(0.1)
    assert wake_s is not None
    assert dispatcher.drain(wake_s - 0.001) == []
    assert told(dispatcher.drain(wake_s)) == [("r", "a1")]


def test_a_full_cell_has_requests_wait_and_a_report_of_room_frees_them() -> None:
    dispatcher = busy(queue=replace(QUEUE, gate=Always()), seconds=0.0)
    dispatcher.core.report("a1", load(waiting_seqs=64), 0.0)
    assert told(dispatcher.submit(ask("r"), 0.0)) == [("r", "queued")]
    assert dispatcher.drain(1.0) == []
    dispatcher.core.report("a1", load(), 1.0)
    assert dispatcher.drain(1.005) == []  # too soon after the last attempt
    wake_s = dispatcher.next_wake_s(1.005)
    assert wake_s is not None and wake_s <= 1.02
    assert told(dispatcher.drain(wake_s)) == [("r", "a1")]


def test_a_worker_that_joins_takes_what_waits() -> None:
    dispatcher = busy()
    dispatcher.submit(ask("r"), 0.0)
    dispatcher.core.put_worker(worker("a2"))
    assert told(dispatcher.drain(0.1)) == [("r", "a2")]


def promised(max_requests: int = 100) -> Dispatcher:
    """No worker, and a planner that starts one when somebody asks."""
    dispatcher = Dispatcher(
        cell(policy=replace(POLICY, queue=replace(QUEUE, gate=Always(), max_requests=max_requests)))
    )
    dispatcher.core.promise("planner", "m", 30.0)
    return dispatcher


def test_requests_wait_for_the_first_worker_of_a_model_that_a_planner_brings_back() -> None:
    dispatcher = promised()
    (outcome,) = dispatcher.submit(ask("r"), 0.0)
    assert isinstance(outcome.answer, Queued)
    assert outcome.answer.expected_wait_s >= 30.0 and outcome.answer.within_s == 90.0
    assert "a worker is started for them" in outcome.answer.reason
    for tick in range(1, 400):
        assert dispatcher.drain(tick * 0.1) == []
    wake_s = dispatcher.next_wake_s(40.0)
    assert wake_s is not None and 40.0 < wake_s <= 40.2, "nobody looks all the time"
    dispatcher.core.put_worker(worker("a1"))
    assert told(dispatcher.drain(40.1)) == [("r", "a1")]


def test_requests_that_come_while_the_last_worker_drains_wait_for_the_next() -> None:
    dispatcher = promised()
    dispatcher.core.put_worker(replace(worker("a1"), is_draining=True))
    (outcome,) = dispatcher.submit(ask("r"), 0.0)
    assert isinstance(outcome.answer, Queued)
    dispatcher.core.remove_worker("a1")
    assert dispatcher.drain(0.1) == []
    dispatcher.core.put_worker(worker("a2"))
    assert told(dispatcher.drain(5.0)) == [("r", "a2")]


def test_a_model_that_nobody_brings_back_is_refused_at_once_also_to_those_who_wait() -> None:
    dispatcher = promised()
    dispatcher.submit(ask("r"), 0.0)
    assert isinstance(dispatcher.submit(replace(ask("other"), model="n"), 0.0)[0].answer, Rejected)
    dispatcher.core.promise("planner", "", 0.0)
    ((_, answer, *_),) = dispatcher.drain(0.2)
    assert isinstance(answer, Rejected) and answer.code is RejectionCode.NO_WORKERS


def test_who_can_not_wait_for_a_worker_is_told_how_long_it_takes() -> None:
    dispatcher = promised(max_requests=2)
    dispatcher.submit(ask("a"), 0.0)
    dispatcher.submit(ask("b"), 0.0)
    full = dispatcher.submit(ask("c"), 0.0)[-1]
    assert full.shed is Shed.FULL and isinstance(full.answer, Rejected) and 30.0 <= full.answer.retry_after_s <= 32.0
    late = dispatcher.submit(ask("d", target_s=5.0), 0.0)[-1]
    assert late.shed is Shed.TOO_LATE and "about 26.5 s after the 5 s" in late.answer.reason
    expired = dispatcher.drain(90.0)
    assert [one.shed for one in expired] == [Shed.EXPIRED, Shed.EXPIRED] and not len(dispatcher)


def flooded(queue: QueuePolicy = QUEUE) -> Dispatcher:
    """One tenant has given the workers all that they take, and has more waiting."""
    dispatcher = busy("a1", "a2", queue=queue, seconds=0.0)
    for number in range(12):
        dispatcher.submit(ask(f"loud {number}", tenant="loud"), 0.0)
    assert len(dispatcher) > 0
    return dispatcher


def test_a_tenant_with_little_to_do_waits_for_no_other_tenant() -> None:
    dispatcher = flooded()
    waiting = len(dispatcher)
    ((name, where),) = told(dispatcher.submit(ask("quiet", tenant="quiet"), 0.0))
    assert (name, where in ("a1", "a2"), len(dispatcher)) == ("quiet", True, waiting)
    assert told(dispatcher.submit(ask("loud again", tenant="loud"), 0.0)) == [("loud again", "queued")]


def test_it_passes_also_workers_whose_line_is_full_of_others() -> None:
    dispatcher = flooded()
    for name in ("a1", "a2"):
        dispatcher.core.report(name, load(waiting_seqs=64), 0.0)
    assert told(dispatcher.submit(ask("quiet", tenant="quiet"), 0.0))[0][1] != "queued"


@pytest.mark.parametrize(
    "asked", [ask("nobody's"), ask("batch", tenant="quiet", priority=-1)], ids=lambda asked: asked.request_id
)
def test_who_is_nobody_or_has_no_hurry_queues_like_everybody(asked: Query) -> None:
    assert told(flooded().submit(asked, 0.0)) == [(asked.request_id, "queued")]


def test_where_engines_take_no_turns_nobody_passes() -> None:
    dispatcher = flooded(replace(QUEUE, tenants=False))
    assert told(dispatcher.submit(ask("quiet", tenant="quiet"), 0.0)) == [("quiet", "queued")]


def test_a_tenant_passes_until_it_has_enough_before_itself_everywhere_and_again_once_that_has_begun() -> None:
    dispatcher = flooded()
    words = [told(dispatcher.submit(ask(f"quiet {n}", tokens=400, tenant="quiet"), 0.0))[0][1] for n in range(8)]
    assert sorted(words[:2]) == ["a1", "a2"], "behind its own prompt it would wait for one of the others' too"
    assert set(words[2:]) == {"queued"}, "nobody slips past an own request that waits"
    for number in range(2, 8):
        dispatcher.finish("gateway", f"quiet {number}")
    dispatcher.core.first_token("gateway", "quiet 0")
    assert told(dispatcher.submit(ask("quiet 9", tokens=400, tenant="quiet"), 0.5)) == [("quiet 9", words[0])]


def test_a_newcomer_does_not_slip_past_those_that_wait() -> None:
    dispatcher = busy()
    dispatcher.submit(ask("first", tokens=400), 0.0)
    dispatcher.core.report("a1", load(), 1.0)
    assert told(dispatcher.submit(ask("second"), 1.0)) == [("first", "a1"), ("second", "a1")]


def test_one_that_fits_nowhere_does_not_keep_up_those_behind_it() -> None:
    dispatcher = busy(seconds=1.0)
    dispatcher.submit(ask("large", tokens=8000, priority=1), 0.0)
    dispatcher.submit(ask("small"), 0.0)
    dispatcher.core.report("a1", load(free_blocks=100), 2.0)
    assert told(dispatcher.drain(2.0)) == [("small", "a1")]
    dispatcher.finish("gateway", "small")
    dispatcher.core.report("a1", load(), 4.0)
    assert told(dispatcher.drain(4.0)) == [("large", "a1")]


def test_prefill_workers_that_are_busy_have_long_prompts_wait_and_short_ones_pass() -> None:
    dispatcher = busy("d1", "p1", seconds=0.0)
    dispatcher.core.report("p1", load(waiting_prefill_tokens=1000), 0.0)
    dispatcher.core.report("d1", load(running_seqs=20), 0.0)
    assert told(dispatcher.submit(ask("long", tokens=4000), 0.0)) == [("long", "queued")]
    assert told(dispatcher.submit(ask("short", tokens=60), 0.1)) == [("short", "d1")]
    dispatcher.core.report("p1", load(), 0.6)
    assert told(dispatcher.drain(0.6)) == [("long", "d1")]


def test_dynamos_threshold_is_in_steps_of_prompt_tokens_that_the_router_has_placed() -> None:
    gate = PrefillBatches(below=2.0)
    dispatcher = busy("a1", "a2", queue=QueuePolicy(gate=gate), seconds=9.0)
    outcomes = [dispatcher.submit(ask(f"r{n}", tokens=600), 0.0) for n in range(6)]
    # Steps of 500 tokens: a worker takes more while it has no more than 1,000.
    assert [_word(one) for (one,) in outcomes] == ["a1", "a2", "a1", "a2", "queued", "queued"]
    dispatcher.core.first_token("gateway", "r1")
    dispatcher.core.report("a2", load(), 0.1)
    assert told(dispatcher.drain(0.1)) == [("r4", "a2")]


def test_bands_tenants_and_deadlines_decide_who_is_next() -> None:
    dispatcher = busy(queue=replace(QUEUE, floor=0.0))
    for one in (
        ask("flood1", tenant="flood"), ask("flood2", tenant="flood"), ask("quiet", tenant="quiet"),
        ask("urgent", tenant="flood", target_s=9.0, tokens=900), ask("high", priority=3), ask("low", priority=-3),
    ):  # fmt: skip
        dispatcher.submit(one, 0.0)
    order: list[str] = []
    now_s = 0.0
    while len(dispatcher):
        now_s += 1.0
        dispatcher.core.report("a1", load(), now_s)
        order += [name for name, _ in told(dispatcher.drain(now_s))]
        for name in order:
            dispatcher.finish("gateway", name)
    assert order == ["high", "urgent", "quiet", "flood1", "flood2", "low"]


# --- refused


def test_what_waiting_can_not_change_is_refused_at_once() -> None:
    dispatcher = busy("a1", worker("a2", is_draining=True))
    for asked, code in (
        (replace(ask("r"), model="x"), RejectionCode.NO_WORKERS),
        (ask("r", tokens=20_000), RejectionCode.NO_WORKERS),
        (replace(ask("r"), excluded=("a1",)), RejectionCode.OVERLOADED),
    ):
        (outcome,) = dispatcher.submit(asked, 0.0)
        assert isinstance(outcome.answer, Rejected)
        assert (outcome.answer.code, outcome.shed) == (code, None)
    assert len(dispatcher) == 0


def test_the_last_worker_gone_those_that_wait_hear_of_it() -> None:
    dispatcher = busy()
    dispatcher.submit(ask("r"), 0.0)
    dispatcher.core.remove_worker("a1")
    (outcome,) = dispatcher.drain(0.1)
    assert isinstance(outcome.answer, Rejected)
    assert outcome.answer.code is RejectionCode.NO_WORKERS
    assert len(dispatcher) == 0


def test_a_full_queue_refuses_with_how_full_it_is_and_when_to_come_again() -> None:
    dispatcher = busy(queue=replace(QUEUE, max_requests=2))
    dispatcher.submit(ask("one", tokens=4000), 0.0)
    dispatcher.submit(ask("two", tokens=4000), 0.0)
    (outcome,) = dispatcher.submit(ask("three", tokens=5000), 0.0)
    assert isinstance(outcome.answer, Rejected)
    assert (outcome.answer.code, outcome.shed) == (RejectionCode.OVERLOADED, Shed.FULL)
    assert outcome.reason == "the queue is full: 2 requests wait with 8.0 s of work, 1.00 s of it go in a second"
    assert outcome.answer.retry_after_s == pytest.approx(8.0)


def test_a_higher_band_pushes_out_the_youngest_of_the_lowest() -> None:
    dispatcher = busy(queue=replace(QUEUE, max_requests=2))
    dispatcher.submit(ask("old"), 0.0)
    dispatcher.submit(ask("young"), 0.1)
    outcomes = dispatcher.submit(ask("high", priority=1), 0.2)
    assert told(outcomes) == [("young", "pushed out"), ("high", "queued")]
    assert outcomes[0].waited_s == pytest.approx(0.1)
    assert told(dispatcher.submit(ask("low", priority=-1), 0.3)) == [("low", "full")]


def test_a_flood_fills_the_queue_only_until_others_come() -> None:
    dispatcher = busy(queue=replace(QUEUE, max_requests=4))
    for number in range(4):
        dispatcher.submit(ask(f"flood{number}", tenant="flood"), 0.0)
    assert told(dispatcher.submit(ask("flood4", tenant="flood"), 0.0)) == [("flood4", "full")]
    assert told(dispatcher.submit(ask("quiet", tenant="quiet"), 0.0)) == [("flood3", "pushed out"), ("quiet", "queued")]


def test_one_large_newcomer_does_not_empty_the_queue_that_has_become_too_long() -> None:
    dispatcher = busy(queue=replace(QUEUE, max_wait_s=10.0), seconds=50.0)
    for number in range(10):
        dispatcher.submit(ask(f"r{number}", tokens=1000), 0.0)
    outcomes = dispatcher.submit(ask("high", tokens=2000, priority=1), 5.0)
    assert told(outcomes) == [("r9", "pushed out"), ("r8", "pushed out"), ("high", "queued")]


def test_a_first_token_that_would_come_too_late_is_refused_before_it_waits() -> None:
    dispatcher = busy()
    dispatcher.submit(ask("large", tokens=5000), 0.0)
    # 2 s of prompts at the worker, 5 s in the queue, one of its own.
    (outcome,) = dispatcher.submit(ask("r", tokens=6000, target_s=8.0), 0.0)
    assert isinstance(outcome.answer, Rejected)
    assert outcome.shed is Shed.TOO_LATE
    assert outcome.answer.retry_after_s == pytest.approx(5.0)
    assert told(dispatcher.submit(ask("r", tokens=6000, target_s=13.5), 0.0)) == [("r", "queued")]
    assert told(dispatcher.submit(ask("short", tokens=100, target_s=3.0), 0.0)) == [("short", "queued")]


def test_a_request_is_given_up_when_its_target_is_out_of_reach_and_anyone_at_the_longest_wait() -> None:
    dispatcher = busy(seconds=3.0, queue=replace(QUEUE, max_wait_s=20.0))
    dispatcher.submit(ask("patient"), 0.0)
    dispatcher.submit(ask("target", tokens=1000, target_s=6.0), 0.0)
    dispatcher.core.report("a1", load(waiting_prefill_tokens=90_000), 1.0)
    assert dispatcher.next_wake_s(1.0) == pytest.approx(5.0)
    assert told(dispatcher.drain(5.0)) == [("target", "expired")]
    assert dispatcher.next_wake_s(5.0) == pytest.approx(20.0)
    (outcome,) = dispatcher.drain(20.0)
    assert told([outcome]) == [("patient", "expired")]
    assert outcome.reason == "nobody could take it in the 20.0 s that it could wait; waited 20.000 s"
    assert dispatcher.next_wake_s(20.0) is None


# --- leaving


def test_a_client_that_leaves_frees_its_place() -> None:
    dispatcher = busy()
    dispatcher.submit(ask("r"), 0.0)
    assert dispatcher.finish("gateway", "r")
    assert not dispatcher.finish("gateway", "r")
    dispatcher.core.report("a1", load(), 5.0)
    assert dispatcher.drain(5.0) == []


def test_a_gateway_that_leaves_takes_along_what_waits_and_what_is_placed() -> None:
    dispatcher = busy(seconds=0.0)
    dispatcher.submit(ask("placed", tokens=2000), 0.0)
    dispatcher.submit(ask("waits"), 0.0)
    dispatcher.submit(replace(ask("other's"), owner="other"), 0.0)
    assert dispatcher.forget("gateway") == ["placed"]
    assert dispatcher.core.requests_in_flight == 0
    dispatcher.core.report("a1", load(), 5.0)
    assert told(dispatcher.drain(5.0)) == [("other's", "a1")]


def test_a_request_that_is_submitted_again_waits_once() -> None:
    dispatcher = busy()
    dispatcher.submit(ask("r"), 0.0)
    assert told(dispatcher.submit(ask("r", tokens=700), 1.0)) == [("r", "replaced"), ("r", "queued")]
    assert len(dispatcher) == 1


# --- invariants


class CountingRng(random.Random):
    """Placement draws from it twice for every look at the cell."""

    draws = 0

    def random(self) -> float:
        self.draws += 1
        return super().random()

    @property
    def looks(self) -> int:
        return self.draws // 2


def test_a_drain_looks_at_the_next_few_however_many_wait() -> None:
    rng = CountingRng(0)
    core = RoutingCore(replace(POLICY, queue=replace(QUEUE, max_wait_s=1e6)), rng)
    core.put_worker(worker("a1"))
    core.report("a1", load(waiting_prefill_tokens=100_000), 0.0)
    dispatcher = Dispatcher(core)
    for number in range(3000):
        dispatcher.submit(ask(f"r{number}", tokens=9000), 0.0)
    before = rng.looks
    for number in range(1000):
        dispatcher.drain(0.001 * number)
    assert rng.looks == before, "a gate that is closed for all is not tried"
    core.report("a1", load(free_blocks=100), 50.0)
    for number in range(1000):
        dispatcher.drain(50.0 + 0.001 * number)
    assert 0 < rng.looks - before <= 4 * 101, "four of them, a hundred times a second"


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["submit"] * 5 + ["report"] * 3 + ["finish", "first", "leave", "join", "part", "wait"]),
        st.integers(0, 5), st.integers(1, 4000), st.floats(0.0, 3.0),
    ),
    max_size=80,
)  # fmt: skip


def play(events: list[tuple[str, int, int, float]]) -> tuple[list[Outcome], set[tuple[str, str]], Dispatcher]:
    """Every outcome, who left before a final one, and the dispatcher at the end."""
    queue = replace(QUEUE, max_requests=6, max_wait_s=8.0)
    core = cell("a1", "a2", policy=replace(POLICY, queue=queue))
    dispatcher, outcomes, left, now_s = Dispatcher(core), [], set[tuple[str, str]](), 0.0
    for number, (event, choice, tokens, gap_s) in enumerate(events):
        now_s += gap_s
        name = f"a{choice % 3 + 1}"
        if event == "submit":
            asked = ask(f"r{number}", tokens, f"t{choice % 3}", choice % 4 - 1, 5.0 if choice == 5 else 0.0)
            asked = replace(asked, owner=f"g{choice % 2}", hashes=prompt(tokens, seed=choice))
            outcomes += dispatcher.submit(asked, now_s)
        elif event == "report":
            core.report(name, load(waiting_prefill_tokens=tokens, waiting_seqs=choice * 14), now_s)
        elif event in ("finish", "first") and outcomes:
            asked = outcomes[tokens % len(outcomes)].query
            if event == "first":
                core.first_token(asked.owner, asked.request_id)
            elif dispatcher.finish(asked.owner, asked.request_id):
                left.add((asked.owner, asked.request_id))
        elif event == "leave":
            waiting = {(one.query.owner, one.query.request_id) for one in outcomes if not one.is_final}
            final = {(one.query.owner, one.query.request_id) for one in outcomes if one.is_final}
            left |= {key for key in waiting - final if key[0] == f"g{choice % 2}"}
            dispatcher.forget(f"g{choice % 2}")
        elif event == "join":
            core.put_worker(worker(name))
        elif event == "part":
            core.remove_worker(name)
        outcomes += dispatcher.drain(now_s)
    while (wake_s := dispatcher.next_wake_s(now_s)) is not None:
        assert wake_s > now_s
        now_s = wake_s
        outcomes += dispatcher.drain(now_s)
    return outcomes, left, dispatcher


@settings(deadline=None)
@given(EVENTS)
def test_every_request_gets_exactly_one_final_outcome(events: list[tuple[str, int, int, float]]) -> None:
    outcomes, left, dispatcher = play(events)
    submitted = [f"r{number}" for number, event in enumerate(events) if event[0] == "submit"]
    final = [one.query.request_id for one in outcomes if one.is_final]
    gone = [request_id for _, request_id in left]
    assert sorted(final + gone) == sorted(submitted)
    assert len(dispatcher) == 0
    assert dispatcher.by_band() == {}


@settings(deadline=None)
@given(EVENTS)
def test_nobody_waits_longer_than_he_may_and_who_is_refused_hears_when_to_come_again(
    events: list[tuple[str, int, int, float]],
) -> None:
    outcomes, _, dispatcher = play(events)
    assert all(one.waited_s <= 8.0 + 3.0 for one in outcomes)  # events are up to 3 s apart
    placed = [one for one in outcomes if isinstance(one.answer, Placed)]
    assert dispatcher.core.requests_in_flight <= len(placed)
    for one in outcomes:
        if isinstance(one.answer, Rejected) and one.shed:
            assert 1.0 <= one.answer.retry_after_s <= 60.0


@settings(deadline=None)
@given(EVENTS)
def test_the_same_events_have_the_same_outcomes(events: list[tuple[str, int, int, float]]) -> None:
    first, second = play(events)[0], play(events)[0]
    assert [(told([one]), one.waited_s) for one in first] == [(told([one]), one.waited_s) for one in second]
