"""Past decisions can be asked for and judged again, and take no more memory than they may."""

import random

import pytest

from armature.routing.decision import Placed, Rejected
from armature.routing.history import History
from armature.routing.router import RoutingCore
from armature.runtime.policies import load_policy, shipped_policies
from tests.unit.routing.cell import query, worker

SECONDS = load_policy("seconds")


def core(*names: str) -> RoutingCore:
    made = RoutingCore(SECONDS, random.Random(0))
    for name in names:
        made.put_worker(worker(name))
    return made


def placed_and_remembered(history: History, cell: RoutingCore, request_id: str, now_s: float) -> Placed | Rejected:
    asked = query(request_id)
    outcome = cell.place(asked, now_s)
    history.add(asked, outcome, now_s)
    return outcome


def test_judging_a_decision_again_gives_the_same_one_whatever_has_happened_since() -> None:
    history, cell = History(SECONDS, 1 << 20), core("p1", "d1", "d2", "d3")
    outcomes = [placed_and_remembered(history, cell, f"r{i}", i / 100) for i in range(20)]
    for i, outcome in enumerate(outcomes):
        (decision,) = history.of(f"r{i}")
        again = decision.judged_by(SECONDS)
        assert isinstance(outcome, Placed) and again is not None
        assert again.chosen == outcome.chosen
        assert again.candidates() == outcome.candidates


@pytest.mark.parametrize("name", shipped_policies())
def test_every_policy_that_comes_with_the_router_can_judge(name: str) -> None:
    history, cell = History(SECONDS, 1 << 20), core("p1", "d1", "d2")
    placed_and_remembered(history, cell, "r", 0.0)
    judgement = history.of("r")[0].judged_by(load_policy(name))
    assert judgement is not None
    assert judgement.chosen.decode_id in ("d1", "d2")


def test_a_request_that_was_moved_has_a_decision_for_each_attempt() -> None:
    history, cell = History(SECONDS, 1 << 20), core("d1", "d2")
    for request_id in ("r", "r2", "r-1", "r-2"):
        placed_and_remembered(history, cell, request_id, 0.0)
    assert [decision.query.request_id for decision in history.of("r")] == ["r", "r-1", "r-2"]


def test_the_oldest_decisions_go_first_and_memory_stays_within_its_bound() -> None:
    history, cell = History(SECONDS, 50_000), core("d1", "d2")
    for i in range(200):
        placed_and_remembered(history, cell, f"r{i}", i / 10)
        assert history.size_bytes <= 50_000
    kept = history.latest(1000)
    assert 5 < len(kept) < 100
    assert [decision.query.request_id for decision in kept] == [f"r{i}" for i in range(200 - len(kept), 200)]
    history.first_token("gateway", "r0", 30.0)  # forgotten: ignored
    history.first_token("gateway", "r199", 30.0, cached_tokens=40)
    assert (kept[-1].first_token_s, kept[-1].cached_tokens) == (30.0, 40)


def test_a_refusal_is_remembered_with_its_reason() -> None:
    history, cell = History(SECONDS, 1 << 20), core("p1")
    outcome = placed_and_remembered(history, cell, "r", 0.0)
    assert history.of("r")[0].rejected == outcome
    assert history.of("r")[0].judged_by(SECONDS) is None


def test_a_decision_holds_no_hashes_but_knows_how_many_there_were() -> None:
    history, cell = History(SECONDS, 1 << 20), core("d1")
    placed_and_remembered(history, cell, "r", 0.0)
    assert history.of("r")[0].query.hashes == range(50)
