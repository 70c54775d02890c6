"""Where prompts go, as tables: who is there, who holds and does what, what is asked, and the answer."""

from dataclasses import dataclass, field, replace

import pytest

from armature.routing.decision import Placed, Rejected, RejectionCode
from armature.routing.policy import Disaggregation
from armature.routing.worker import Load, Worker
from tests.unit.routing.cell import BLOCK_SIZE, cell, load, placed, prompt, query, worker


@dataclass
class Case:
    """`held`: blocks of the prompt by worker. `loads`: what workers report just before."""

    workers: tuple[str | Worker, ...]
    answer: tuple[str, str]
    tokens: int = 500
    held: dict[str, int] = field(default_factory=dict)
    loads: dict[str, Load] = field(default_factory=dict)
    mode: Disaggregation = Disaggregation.AUTO
    excluded: tuple[str, ...] = ()


BUSY = load(running_seqs=20)
NO_BLOCKS = load(free_blocks=0, waiting_seqs=5, waiting_prefill_tokens=4600)

CASES = {
    # Where to compute the prompt.
    "a long prompt leaves an idle decode worker to its trade": Case(("d1", "p1"), ("d1", "p1")),
    "a short prompt is computed on the decode worker": Case(("d1", "p1"), ("d1", ""), tokens=60),
    "so is a short prompt although many streams run there": Case(
        ("d1", "p1"), ("d1", ""), tokens=60, loads={"d1": BUSY}
    ),
    "a middling prompt stays on an idle decode worker": Case(("d1", "p1"), ("d1", ""), tokens=80),
    "and leaves one where streams run": Case(("d1", "p1"), ("d1", "p1"), tokens=100, loads={"d1": BUSY}),
    "a mostly cached prompt is computed where it is cached": Case(("d1", "p1"), ("d1", ""), held={"d1": 45}),
    "a prompt whose blocks are all on the decode worker is not sent away": Case(
        ("d1", "p1"), ("d1", ""), held={"d1": 50}, mode=Disaggregation.ALWAYS
    ),
    "a prefill worker's long queue sends the prompt back": Case(
        ("d1", "p1"), ("d1", ""), loads={"p1": load(waiting_prefill_tokens=5000)}
    ),
    "a slow link keeps the prompt local": Case(
        ("d1", "p1"), ("d1", ""), loads={"d1": load(transfer_bytes_per_s=5e7)}
    ),
    "never is never": Case(("d1", "p1"), ("d1", ""), loads={"d1": BUSY}, mode=Disaggregation.NEVER),
    "always is even a short prompt": Case(("d1", "p1"), ("d1", "p1"), tokens=60, mode=Disaggregation.ALWAYS),
    "but a prompt without a whole block before its last token has nothing to fetch": Case(
        ("d1", "p1"), ("d1", ""), tokens=BLOCK_SIZE, mode=Disaggregation.ALWAYS
    ),
    "always without a prefill worker is local": Case(("d1",), ("d1", ""), mode=Disaggregation.ALWAYS),
    # Which prefill worker.
    "the prefill worker that holds the prefix computes it": Case(
        ("d1", "p1", "p2"), ("d1", "p2"), held={"p2": 40}
    ),
    "unless its queue is longer than computing the prefix again": Case(
        ("d1", "p1", "p2"), ("d1", "p1"), held={"p2": 20}, loads={"p2": load(waiting_prefill_tokens=900)}
    ),
    "blocks move only between equal fingerprints": Case(
        ("d1", worker("p1", fingerprint=b"other"), "p2"), ("d1", "p2"), loads={"p2": load(waiting_prefill_tokens=100)}
    ),
    "an unequal fingerprint alone means a local prefill": Case(
        ("d1", worker("p1", fingerprint=b"other")), ("d1", ""), mode=Disaggregation.ALWAYS
    ),
    "a draining prefill worker gets nothing": Case(("d1", worker("p1", is_draining=True)), ("d1", "")),
    "an excluded prefill worker gets nothing": Case(("d1", "p1", "p2"), ("d1", "p2"), excluded=("p1",)),
    "a full prefill worker gets nothing": Case(
        ("d1", "p1"), ("d1", ""), loads={"p1": load(waiting_seqs=64)}, mode=Disaggregation.ALWAYS
    ),
    # Which decode worker.
    "the worker that holds the prompt": Case(("a1", "a2", "a3"), ("a2", ""), held={"a2": 30}),
    "the one that holds most of it": Case(("a1", "a2", "a3"), ("a3", ""), held={"a2": 30, "a3": 40}),
    "not one whose queue costs more than the overlap saves": Case(
        ("a1", "a2"), ("a1", ""), held={"a2": 20}, loads={"a2": load(waiting_prefill_tokens=1000)}
    ),
    "the least crowded without overlap": Case(
        ("d1", "d2", "d3"), ("d3", ""), loads={"d1": BUSY, "d2": BUSY, "d3": load(running_seqs=2)}
    ),
    "the least crowded also when the prompt is computed elsewhere": Case(
        ("d1", "d2", "p1"), ("d2", "p1"), loads={"d1": BUSY, "d2": load(running_seqs=2)}
    ),
    "a faster worker": Case(("a1", "a2"), ("a2", ""), loads={
        "a1": load(prefill_tokens_per_s=999.0), "a2": load(prefill_tokens_per_s=3000.0),
    }),
    "one with free blocks": Case(("a1", "a2"), ("a2", ""), loads={"a1": load(free_blocks=10)}),
    "one with a place in its batch": Case(("a1", "a2"), ("a2", ""), loads={"a1": load(running_seqs=32)}),
    "the one that is not draining": Case((worker("a1", is_draining=True), "a2"), ("a2", ""), held={"a1": 50}),
    "the one that has not failed": Case(("a1", "a2"), ("a2", ""), excluded=("a1",), held={"a1": 50}),
    "an aggregated worker never asks another": Case(("a1", "p1"), ("a1", ""), mode=Disaggregation.ALWAYS),
    # Both together.
    "a decode worker's overlap shortens what is read, not what is computed": Case(
        ("d1", "d2", "p1"), ("d2", "p1"), tokens=2000, held={"d2": 50}, loads={"d1": load(), "d2": load()}
    ),
    "a queue on the decode worker hides what the prefill worker does": Case(
        ("d1", "p1"), ("d1", "p1"), tokens=100, loads={"d1": load(waiting_prefill_tokens=1000)}
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_prompt_goes_to(case: Case) -> None:
    core = cell(*case.workers, mode=case.mode)
    for worker_id, reported in case.loads.items():
        core.report(worker_id, reported, now_s=0.0)
    for worker_id, blocks in case.held.items():
        core.index.store(worker_id, prompt(case.tokens)[:blocks])
    assert placed(core.place(query(tokens=case.tokens, excluded=case.excluded), now_s=0.0)) == case.answer


@pytest.mark.parametrize(
    ("workers", "loads", "asked", "code", "reason", "retry_after_s"),
    [
        ([], {}, {}, RejectionCode.NO_WORKERS, "no decode worker serves model 'm'", 0.0),
        (["a1"], {}, {"model": "x"}, RejectionCode.NO_WORKERS, "no decode worker serves model 'x'", 0.0),
        (["p1"], {}, {}, RejectionCode.NO_WORKERS, "no decode worker serves model 'm'", 0.0),
        (["a1"], {}, {"tokens": 10_000}, RejectionCode.NO_WORKERS, "needs 1001 blocks", 0.0),
        (["a1"], {"a1": load(waiting_seqs=64)}, {}, RejectionCode.OVERLOADED, "1 full, 0 draining, 0 excluded", 10.3),
        (
            ["a1"],
            {"a1": load(free_blocks=0, waiting_seqs=5, waiting_prefill_tokens=4600)},
            {},
            RejectionCode.OVERLOADED,
            "1 full",
            9.7,
        ),
        (["a1"], {"a1": load(waiting_seqs=64, waiting_prefill_tokens=90_000)}, {}, RejectionCode.OVERLOADED, "", 30.0),
        ([worker("a1", is_draining=True)], {}, {}, RejectionCode.OVERLOADED, "0 full, 1 draining, 0 excluded", 1.0),
        (["a1", "a2"], {}, {"excluded": ["a1", "a2"]}, RejectionCode.OVERLOADED, "0 full, 0 draining, 2 excluded", 1.0),
    ],
)
def test_nobody_can_take_it(
    workers: list[str | Worker], loads: dict[str, Load], asked: dict[str, object], code: RejectionCode, reason: str,
    retry_after_s: float,
) -> None:  # fmt: skip
    core = cell(*workers)
    for worker_id, reported in loads.items():
        core.report(worker_id, reported, now_s=0.0)
    outcome = core.place(query(**asked), now_s=0.0)  # type: ignore[arg-type]
    assert isinstance(outcome, Rejected)
    assert outcome.code is code
    assert reason in outcome.reason
    assert outcome.retry_after_s == pytest.approx(retry_after_s, abs=0.05)
    assert core.requests_in_flight == 0


@pytest.mark.parametrize("mode", list(Disaggregation))
def test_a_prompt_that_must_be_computed_where_it_is_placed_gets_no_prefill_worker(mode: Disaggregation) -> None:
    core = cell("d1", "p1", mode=mode)
    assert placed(core.place(replace(query(), prefill_locally=True), now_s=0.0)) == ("d1", "")


def test_a_refused_worker_is_not_counted_full_by_what_it_already_holds() -> None:
    """1,000 blocks of room, all cached by this very prompt: it needs one more, not a thousand."""
    core = cell("a1")
    core.report("a1", load(free_blocks=1), now_s=0.0)
    core.index.store("a1", prompt(9900))
    assert placed(core.place(query(tokens=9900), now_s=0.0)) == ("a1", "")


def test_the_same_prompt_goes_where_it_went_before() -> None:
    core = cell("a1", "a2", "a3")
    first = placed(core.place(query("one", seed=1), now_s=0.0))[0]
    core.finish("gateway", "one")
    core.index.store(first, prompt(500, seed=1))
    for number in range(5):
        again = core.place(query(f"again-{number}", seed=1), now_s=20.0 + number)
        assert placed(again) == (first, "")
        assert isinstance(again, Placed) and again.overlap_tokens == 490
        core.finish("gateway", f"again-{number}")


def test_prompts_without_a_home_are_spread_one_by_one() -> None:
    core = cell("a1", "a2", "a3", "a4")
    homes: list[str] = []
    for number in range(8):
        homes.append(placed(core.place(query(f"r{number}", seed=number), now_s=float(number)))[0])
        core.finish("gateway", f"r{number}")
    assert homes == ["a1", "a2", "a3", "a4"] * 2


def test_prompts_at_once_are_spread_evenly() -> None:
    core = cell("d1", "d2", "d3", "d4", "p1", "p2")
    for number in range(40):
        core.place(query(f"r{number}", seed=number), now_s=0.0)
    requests = {name: known.requests for name, known in core._accounts.items()}
    assert max(requests[f"d{n}"] for n in range(1, 5)) - min(requests[f"d{n}"] for n in range(1, 5)) <= 1


def test_a_burst_of_siblings_follows_the_first_before_any_event_arrives() -> None:
    core = cell("a1", "a2", "a3", "a4")
    shared = prompt(400)
    homes = [
        placed(core.place(query(f"r{n}", 430, hashes=[*shared, 7000 + 3 * n, 7001 + 3 * n, 7002 + 3 * n]), 0.0))[0]
        for n in range(4)
    ]
    # The last one waits 0.5 s for its turn; elsewhere it would have to compute the prefix for 0.4 s that others want.
    assert len(set(homes)) == 1


def test_and_overflows_once_waiting_costs_more_than_computing_again() -> None:
    core = cell("a1", "a2")
    shared = prompt(400)
    homes = [
        placed(core.place(query(f"r{n}", 500, hashes=[*shared, *range(7000 + 10 * n, 7010 + 10 * n)]), 0.0))[0]
        for n in range(12)
    ]
    assert set(homes) == {"a1", "a2"}
    assert homes[:2] == ["a1"] * 2


def test_siblings_share_a_prefill_worker_too() -> None:
    core = cell("d1", "d2", "p1", "p2")
    homes = [placed(core.place(query(f"r{n}", 2000 + 10 * n), now_s=0.0)) for n in range(3)]
    assert len({prefill for _, prefill in homes}) == 1
    assert homes[0][1]


def test_the_reason_names_the_terms_and_what_was_not_taken() -> None:
    core = cell("d1", "p1")
    outcome = core.place(query(tokens=1000), now_s=0.0)
    assert isinstance(outcome, Placed)
    assert outcome.reason.startswith("d1 with prefill on p1 costs ")
    assert " s (prefill 0.990 + transfer " in outcome.reason
    assert "0 of 1000 tokens cached; next of 1: d1 alone costs " in outcome.reason
    assert {candidate.prefill_id for candidate in outcome.candidates} == {"", "p1"}


def test_the_terms_add_up() -> None:
    core = cell("d1", "d2", "p1", "p2")
    core.report("d1", load(running_seqs=5, waiting_prefill_tokens=1700, free_blocks=50), now_s=0.0)
    core.report("p1", load(waiting_prefill_tokens=300), now_s=0.0)
    outcome = core.place(query(tokens=1000), now_s=0.0)
    assert isinstance(outcome, Placed)
    for way in outcome.candidates:
        own = sum(way.terms[name] for name in ("queue", "room", "prefill", "transfer", "step"))
        assert way.ttft_s == pytest.approx(own)
        assert way.cost == pytest.approx(sum(way.terms.values()))


def test_models_do_not_meet() -> None:
    core = cell("a1", worker("a2", model="other"))
    assert placed(core.place(query("one", model="other"), now_s=0.0)) == ("a2", "")
    assert placed(core.place(query("two"), now_s=0.0)) == ("a1", "")


def test_a_worker_that_left_gets_nothing_and_one_that_came_back_starts_anew() -> None:
    core = cell("a1", "a2")
    core.index.store("a1", prompt(500))
    core.remove_worker("a1")
    assert placed(core.place(query("one"), now_s=0.0)) == ("a2", "")
    core.put_worker(worker("a1"))
    assert placed(core.place(query("two", seed=5), now_s=0.0)) == ("a1", "")
    core.finish("gateway", "one")
    core.finish("gateway", "two")


def test_a_worker_that_begins_to_drain_keeps_its_account_and_gets_no_more() -> None:
    core = cell("a1", "a2")
    core.place(query("one"), now_s=0.0)
    core.put_worker(worker("a1", is_draining=True))
    assert all(placed(core.place(query(f"r{n}"), now_s=0.0)) == ("a2", "") for n in range(3))
    assert core.requests_in_flight == 4


def test_a_worker_that_has_measured_nothing_is_taken_to_be_like_the_best_and_so_is_tried() -> None:
    core = cell("a1", "a2")
    core.report("a1", load(prefill_tokens_per_s=20_000.0, decode_step_s=0.001), now_s=0.0)
    homes = [placed(core.place(query(f"r{n}", seed=n), now_s=0.0))[0] for n in range(2)]
    assert homes == ["a1", "a2"]
    core.put_worker(worker("a3"))
    assert placed(core.place(query("third", seed=3), now_s=0.0)) == ("a3", "")
    core.report("a3", load(prefill_tokens_per_s=100.0), now_s=9.0)
    assert placed(core.place(query("fourth", seed=4), now_s=9.0)) == ("a1", "")
