"""What the planner is compared with does what it says."""

import numpy as np
import pytest

from armature.planning.capacity import Capacity, Targets
from armature.planning.fleet import Counts, Fleet
from armature.planning.observer import Arrivals, Backlog, Observer
from armature.planning.oracle import foresighted
from armature.planning.rivals import Means, MeansPolicy, Schedule, Threshold, ThresholdPolicy
from tests.unit.planning.kinds import arrivals, kind

TARGETS = Targets(ttft_s=3.0, itl_s=0.5)


def test_a_schedule_is_followed() -> None:
    plan, observer = Schedule([(0.0, Counts(2)), (10.0, Counts(5))]), Observer()
    told = [plan.step(observer.take(at_s, Fleet(Counts(2)))).counts.total for at_s in (0.0, 9.0, 10.0, 99.0)]
    assert told == [2, 2, 5, 5]
    with pytest.raises(ValueError, match="in the order of their times"):
        Schedule([(5.0, Counts(1)), (1.0, Counts(2))])


def threshold(in_flight: list[int], now: int = 4) -> list[int]:
    plan, told = Threshold(ThresholdPolicy(in_flight=10.0)), list[int]()
    for step, count in enumerate(in_flight):
        observer = Observer()
        for _ in range(count):
            observer.arrive(0.0, 10)
        now = plan.step(observer.take(15.0 * step, Fleet(Counts(now)))).counts.total
        told.append(now)
    return told


def test_a_threshold_is_kept_within_its_tolerance_and_left_late() -> None:
    assert threshold([40, 43, 60]) == [4, 4, 6]
    late = threshold([80] + [20] * 30)
    assert late[:20] == [8] * 20
    assert late[-1] < 8


def means(backlog: Backlog, fleet: Fleet) -> int:
    plan, observer = Means(MeansPolicy(), TARGETS, kind()), Observer()
    for i in range(180):
        observer.arrive(float(i), 1000)
    return plan.step(observer.take(180.0, fleet, (backlog,) * fleet.ready.total)).counts.total


def test_means_add_one_if_all_are_late_and_take_one_if_none_is() -> None:
    late, early = Backlog(waiting_prefill_tokens=9000), Backlog()
    assert means(late, Fleet(Counts(20))) == 21
    assert means(early, Fleet(Counts(20))) == 19
    assert means(late, Fleet(Counts(20), Counts(1))) == 21, "nothing while a worker starts, which is the 21st"


def test_means_start_from_the_mean_rate() -> None:
    """One prompt of a second each second: one worker is what the mean asks for, bursts or not."""
    assert means(Backlog(), Fleet(Counts(1))) <= 2


def test_foresight_has_workers_when_the_burst_comes_and_lets_them_go_after() -> None:
    times = [10.0 * i for i in range(30)] + [300.0 + i / 5 for i in range(300)] + [400.0 + 10 * i for i in range(40)]
    capacity = Capacity(kind(), TARGETS)
    plan = foresighted(arrivals(times), capacity, slot_s=20.0, start_up_s=60.0)
    observer = Observer()

    def at(now_s: float) -> int:
        return plan.step(observer.take(now_s, Fleet())).counts.total

    assert at(100.0) == 1
    assert at(241.0) >= 5
    assert at(330.0) == plan.peak >= 5
    assert at(500.0) == 1


def test_foresight_keeps_workers_through_lulls_shorter_than_a_start() -> None:
    times = [i / 4 for i in range(400)] + [140.0 + i / 4 for i in range(400)]
    plan = foresighted(arrivals(times), Capacity(kind(), TARGETS), slot_s=20.0, start_up_s=60.0)
    observer = Observer()
    assert plan.step(observer.take(120.0, Fleet())).counts.total >= 4


def test_foresight_of_nothing_is_one_worker() -> None:
    nothing = Arrivals(*(np.zeros(0) for _ in range(4)))
    plan = foresighted(nothing, Capacity(kind(), TARGETS), slot_s=20.0, start_up_s=60.0)
    assert plan.first == Counts(1)
