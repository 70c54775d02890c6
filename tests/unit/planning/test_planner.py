"""The planner, told of made-up traffic second by second, on a fleet that does as it says."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from armature.planning.decision import Decision, Reason
from armature.planning.fleet import Counts, Fleet
from armature.planning.observer import Observer
from armature.planning.planner import Planner
from armature.planning.policy import planner_policy_of
from tests.unit.planning.kinds import kind

Rate = Callable[[float], float]


@dataclass
class World:
    """Prompts of a second each, answered at once; workers that are ready as soon as they are asked for."""

    rate: Rate
    counts: Counts = field(default_factory=lambda: Counts(4))
    seed: int = 1
    output_tokens: int = 1
    ttft_s: float = 1.1
    decisions: list[Decision] = field(default_factory=list[Decision])

    def run(self, until_s: float, **more: Any) -> list[Decision]:
        policy = planner_policy_of({"targets": {"ttft_s": 3.0, "itl_s": 0.5}, "start_up_s": 45.0, **more})
        planner, observer, rng = Planner(policy, kind()), Observer(), random.Random(self.seed)
        next_s, due_s = 0.0, 0.0
        while due_s <= until_s:
            while next_s < due_s:
                rate = self.rate(next_s)
                if rate > 0:
                    observer.arrive(next_s, 1000)
                    observer.first_token(self.ttft_s, 1000)
                    observer.finish(1000, 0, self.output_tokens, 0.0)
                next_s += rng.expovariate(rate) if rate > 0 else 1.0
            decision = planner.step(observer.take(due_s, Fleet(self.counts)))
            self.counts = decision.counts
            self.decisions.append(decision)
            due_s = decision.next_s
        return self.decisions


def test_a_steady_load_gets_a_steady_fleet() -> None:
    decisions = World(lambda _: 4.0, Counts(12)).run(900)
    late = [one.counts.aggregated for one in decisions if one.at_s > 450]
    assert 6 <= min(late) <= max(late) <= 10
    assert sum([one.is_change for one in decisions if one.at_s > 450]) <= 8


def test_the_same_input_gives_the_same_decisions() -> None:
    assert World(lambda _: 3.0).run(600) == World(lambda _: 3.0).run(600)


def test_a_load_that_doubles_is_followed_at_once_and_left_late() -> None:
    decisions = World(lambda now_s: 8.0 if 600 <= now_s < 900 else 2.0).run(1200)
    before = next(one for one in decisions if one.at_s >= 590).counts.aggregated
    during = next(one for one in decisions if one.at_s >= 665).counts.aggregated
    just_after = next(one for one in decisions if one.at_s >= 945).counts.aggregated
    late = decisions[-1].counts.aggregated
    assert during >= 8 > before
    assert just_after >= 8, "nobody leaves in the first minutes"
    assert late < during


def test_every_decision_says_why_and_what_it_was_not() -> None:
    decisions = World(lambda now_s: 8.0 if now_s > 600 else 2.0).run(900)
    up = next(one for one in decisions if one.at_s > 600 and one.reason is Reason.DEMAND)
    assert "are needed" in up.text
    assert up.predicted is not None
    assert up.predicted.ttft_s <= 3.0
    less = next(one for one in up.rejected if one.why_not.startswith("would miss a target: "))
    assert less.counts.aggregated < up.counts.aggregated
    assert less.predicted is not None
    assert less.predicted.ttft_s > 3.0
    assert up.forecast is not None
    assert up.forecast.forecaster


def test_before_the_first_request_nothing_changes() -> None:
    decisions = World(lambda _: 0.0, Counts(5)).run(300)
    assert {(one.counts, one.reason) for one in decisions} == {(Counts(5), Reason.UNKNOWN)}


def test_a_fleet_that_may_vanish_does_so_when_nobody_asks_and_comes_back() -> None:
    world = World(lambda now_s: 2.0 if now_s < 120 or now_s > 1000 else 0.0)
    decisions = world.run(1200, limits={"min_workers": 0}, idle_after_s=200.0)
    gone = next(one for one in decisions if one.counts.total == 0)
    assert gone.reason is Reason.IDLE
    assert 320 <= gone.at_s <= 345
    back = next(one for one in decisions if one.at_s > 1000 and one.counts.total)
    assert back.at_s <= 1020
    assert decisions[-1].counts.total >= 2


def test_a_request_that_is_held_wakes_the_fleet() -> None:
    policy = planner_policy_of({"targets": {"ttft_s": 3.0, "itl_s": 0.5}, "limits": {"min_workers": 0}})
    planner, observer = Planner(policy, kind()), Observer()
    observer.arrive(1.0, 1000)
    decision = planner.step(observer.take(2.0, Fleet()))
    assert (decision.reason, decision.holds_requests) == (Reason.WAKE, True)
    assert decision.counts.total >= 1


def test_limits_are_told_as_the_reason() -> None:
    decisions = World(lambda _: 8.0).run(300, limits={"max_workers": 5})
    assert max(one.counts.total for one in decisions) == 5
    assert decisions[-1].reason is Reason.LIMIT
    assert any("limits allow" in one.why_not for one in decisions[-1].rejected)


def test_what_waits_already_makes_the_fleet_larger() -> None:
    policy = planner_policy_of({"targets": {"ttft_s": 3.0, "itl_s": 0.5}})

    def decide(waiting: int) -> Decision:
        planner, observer = Planner(policy, kind()), Observer()
        for i in range(200):
            observer.arrive(i / 2, 1000)
            if i >= waiting:
                observer.first_token(1.0, 1000)
        return planner.step(observer.take(100.0, Fleet(Counts(1))))

    assert decide(150).counts.total > decide(0).counts.total
    assert decide(150).reason is Reason.BACKLOG


def test_engines_slower_than_their_model_get_more_workers() -> None:
    exact, slow = World(lambda _: 4.0, Counts(8), ttft_s=1.1), World(lambda _: 4.0, Counts(8), ttft_s=8.0)
    assert slow.run(900)[-1].notes["ttft_correction"] > exact.run(900)[-1].notes["ttft_correction"]
    assert slow.decisions[-1].counts.total > exact.decisions[-1].counts.total


class Shift(NamedTuple):
    """What a planner did about it."""

    before: Counts
    at_once: Counts
    late: Counts
    flips: int
    starts: int


def shifted(max_workers: int) -> Shift:
    """Prompts of a second need many prefill workers; then short prompts with long answers need decode workers."""
    policy = planner_policy_of(
        {
            "mode": "disaggregated",
            "targets": {"ttft_s": 3.0, "itl_s": 0.02},
            "pattern_s": 60.0,
            "flip_after_s": 15.0,
            "limits": {"max_workers": max_workers},
        }
    )
    planner, observer = Planner(policy, kind()), Observer()
    counts, seen, flips, starts = Counts(0, 6, 2), list[Counts](), 0, 0
    for tick in range(60):
        tokens, outputs = (1000, 10) if tick < 30 else (50, 600)
        for i in range(60):
            observer.arrive(15.0 * tick + i / 4, tokens)
            observer.first_token(0.5, tokens)
            observer.finish(tokens, 0, outputs, 0.01 * outputs)
        decision = planner.step(observer.take(15.0 * (tick + 1), Fleet(counts)))
        if tick >= 30:
            flips += decision.flips.to_decode
            starts += max(decision.counts.total - counts.total, 0)
        counts = decision.counts
        seen.append(counts)
    return Shift(seen[29], seen[30], seen[-1], flips, starts)


def test_what_long_answers_need_is_there_as_soon_as_the_first_have_ended() -> None:
    shift = shifted(max_workers=64)
    assert shift.at_once.decode > shift.before.decode
    assert shift.late.prefill < shift.before.prefill


def test_where_nobody_may_start_roles_change_when_long_prompts_become_long_answers() -> None:
    shift = shifted(max_workers=5)
    assert shift.late.decode > shift.before.decode
    assert shift.flips >= 1 and not shift.starts


def test_the_first_minute_is_not_held_against_later_forecasts() -> None:
    """From nothing to four a second is a start, not a burst to be ready for ever after."""
    decisions = World(lambda _: 4.0, Counts(8)).run(400)
    assert max(one.counts.total for one in decisions) <= 11
    assert {one.forecast.forecaster for one in decisions[1:4] if one.forecast} == {"none"}


def test_when_all_traffic_vanishes_the_fleet_shrinks_to_what_always_stays() -> None:
    world = World(lambda now_s: 4.0 if now_s < 120 else 0.0)
    # Longer patience than memory: for a while the pattern is empty, and too many are there.
    decisions = world.run(600, pattern_s=60.0, down_after_s=200.0, limits={"min_workers": 1, "max_workers": 9})
    assert max(one.counts.total for one in decisions) > 1
    assert decisions[-1].counts.total == 1
