"""From what is wanted to what is changed."""

import pytest

from armature.planning.changes import Wish, balanced, within
from armature.planning.decision import Flips, Reason
from armature.planning.fleet import NOBODY, Counts
from armature.planning.policy import planner_policy_of
from tests.unit.planning.kinds import kind


def split(prefill: int, decode: int) -> Counts:
    return Counts(0, prefill, decode)


@pytest.mark.parametrize(
    ("now", "least", "settled", "spare", "counts", "reason", "flips"),
    [
        # More come at once, whatever was wanted before.
        (Counts(4), Counts(6), Counts(4), Counts(4), Counts(6), Reason.DEMAND, Flips()),
        # Fewer only as far as nobody wanted more for long.
        (Counts(9), Counts(3), Counts(7), Counts(3), Counts(7), Reason.SURPLUS, Flips()),
        (Counts(9), Counts(3), Counts(9), Counts(3), Counts(9), Reason.SETTLING, Flips()),
        (Counts(9), Counts(9), Counts(8), Counts(8), Counts(9), Reason.STEADY, Flips()),
        # A surplus below 10 % of the fleet is left alone.
        (Counts(40), Counts(37), Counts(37), Counts(37), Counts(40), Reason.SETTLING, Flips()),
        # Roles change before workers start.
        (split(2, 6), split(4, 3), split(4, 6), split(3, 4), split(4, 4), Reason.SPLIT, Flips(to_prefill=2)),
        (split(6, 2), split(3, 4), split(6, 4), split(4, 4), split(4, 4), Reason.SPLIT, Flips(to_decode=2)),
        # Even if some must start nevertheless.
        (split(2, 6), split(6, 3), split(6, 6), split(3, 5), split(6, 5), Reason.DEMAND, Flips(to_prefill=1)),
        # Who was wanted a moment ago does not change its role; the last of a role never.
        (split(2, 6), split(4, 3), split(4, 6), split(3, 6), split(4, 6), Reason.DEMAND, Flips()),
        (split(1, 1), split(2, 0), split(2, 0), split(2, 0), split(2, 1), Reason.DEMAND, Flips()),
    ],
)
def test_growth_is_quick_and_shrinking_patient(
    now: Counts, least: Counts, settled: Counts, spare: Counts, counts: Counts, reason: Reason, flips: Flips
) -> None:
    wish = balanced(now, least, settled, spare, 0.1)
    assert (wish.counts, wish.reason, wish.flips) == (counts, reason, flips)


def test_starting_while_others_are_idle_is_told_as_rejected() -> None:
    wish = balanced(split(2, 6), split(4, 3), split(4, 6), split(3, 4), 0.1)
    assert [one.counts for one in wish.rejected] == [split(4, 6)]


@pytest.mark.parametrize(
    ("limits", "allowed"),
    [
        ({"max_workers": 10}, 10),
        ({"gpus": 16}, 8),
        ({"cost_per_hour": 21.0}, 7),
        ({"watts": 4500.0}, 3),
        ({"gpus": 16, "watts": 9000.0, "max_workers": 7}, 6),
    ],
)
def test_whichever_limit_is_the_tightest_holds(limits: dict[str, float], allowed: int) -> None:
    policy = planner_policy_of({"targets": {"ttft_s": 1.0, "itl_s": 0.1}, "limits": limits})
    priced = kind(gpus=2, cost_per_hour=3.0, watts=1400.0)
    wish = balanced(Counts(2), Counts(20), Counts(2), Counts(2), 0.1)
    held = within(wish, NOBODY, policy, priced)
    assert (held.counts, held.reason) == (Counts(allowed), Reason.LIMIT)
    assert held.rejected[-1].counts == Counts(20)


def test_limits_keep_the_proportion_of_roles() -> None:
    policy = planner_policy_of(
        {"mode": "disaggregated", "targets": {"ttft_s": 1.0, "itl_s": 0.1}, "limits": {"max_workers": 8}}
    )
    wish = balanced(split(1, 1), split(12, 4), split(1, 1), split(1, 1), 0.1)
    assert within(wish, NOBODY, policy, kind()).counts == split(6, 2)
    wish = balanced(split(1, 1), split(30, 1), split(1, 1), split(1, 1), 0.1)
    assert within(wish, NOBODY, policy, kind()).counts == split(7, 1)


def test_at_least_so_many_stay() -> None:
    policy = planner_policy_of({"targets": {"ttft_s": 1.0, "itl_s": 0.1}, "limits": {"min_workers": 3}})
    wish = balanced(Counts(5), Counts(0), Counts(1), Counts(1), 0.1)
    assert within(wish, NOBODY, policy, kind()).counts == Counts(3)


def test_at_the_limit_roles_change_for_a_clear_gain_and_nobody_starts_for_it() -> None:
    policy = planner_policy_of({"targets": {"ttft_s": 1.0, "itl_s": 0.1}, "limits": {"max_workers": 4}})
    wish = Wish(split(3, 2), Reason.DEMAND, "more")
    turned = within(wish, split(3, 1), policy, kind())
    assert (turned.counts, turned.flips) == (split(2, 2), Flips(to_decode=1))
    stays = within(Wish(split(4, 2), Reason.DEMAND, "more"), split(2, 2), policy, kind())
    assert (stays.counts, stays.flips, stays.reason) == (split(2, 2), Flips(), Reason.LIMIT)
