"""Steps end on schedule, however late their thread wakes up."""

import pytest

from armature.engines.step_clock import StepClock


class Thread:
    """A clock that only sleeping and working move, and sleeping always takes too long."""

    def __init__(self, overshoot_s: float = 0.0) -> None:
        self.now_s = 100.0
        self.overshoot_s = overshoot_s
        self.slept_s: list[float] = []
        self.clock = StepClock(lambda: self.now_s, self._sleep)

    def _sleep(self, duration_s: float) -> None:
        self.slept_s.append(duration_s)
        self.now_s += duration_s + self.overshoot_s

    def work(self, duration_s: float) -> None:
        self.now_s += duration_s


def test_lateness_and_planning_do_not_add_up() -> None:
    thread = Thread(overshoot_s=0.003)
    for _ in range(1000):
        thread.clock.pass_step(0.02)
        thread.work(0.002)
    assert thread.now_s == pytest.approx(100.0 + 1000 * 0.02 + 0.003 + 0.002)


def test_after_a_rest_a_step_begins_when_it_comes() -> None:
    thread = Thread()
    thread.clock.pass_step(0.5)
    thread.clock.rest()
    thread.work(7.0)
    thread.clock.pass_step(0.5)
    assert thread.now_s == pytest.approx(108.0)


def test_a_thread_that_was_held_up_catches_up_without_sleep() -> None:
    thread = Thread()
    thread.clock.pass_step(0.1)
    thread.work(0.35)
    for lag_s in (0.25, 0.15, 0.05):
        thread.clock.pass_step(0.1)
        assert thread.clock.lag_s == pytest.approx(lag_s)
    assert len(thread.slept_s) == 1
    thread.clock.pass_step(0.1)
    assert thread.clock.lag_s == 0.0
    assert thread.now_s == pytest.approx(100.5)
