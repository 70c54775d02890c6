"""How quickly counters grow."""

import pytest

from armature.console.rates import Rates


def rates_of(*readings: tuple[float, float]) -> Rates:
    rates = Rates()
    for at_s, value in readings:
        rates.take(at_s, {"tokens": value})
    return rates


def test_one_reading_tells_nothing() -> None:
    assert rates_of((0.0, 100.0)).per_s("tokens") is None


def test_a_rate_is_of_the_last_seconds_only() -> None:
    rates = rates_of(*((float(second), 1000.0 if second < 5 else 1000.0 + 10 * (second - 5)) for second in range(20)))
    assert rates.per_s("tokens") == pytest.approx(10.0)
    assert rates.growth("tokens") == pytest.approx(50.0)


def test_a_counter_that_falls_is_a_new_process() -> None:
    assert rates_of((0.0, 100.0), (1.0, 200.0), (2.0, 5.0)).per_s("tokens") is None
    assert rates_of((0.0, 100.0), (1.0, 200.0), (2.0, 5.0), (3.0, 9.0)).per_s("tokens") == 4.0


def test_a_counter_that_appears_grows_from_nothing() -> None:
    rates = rates_of((0.0, 1.0))
    rates.take(2.0, {"tokens": 1.0, "bytes": 6.0})
    assert rates.per_s("bytes") == 3.0
