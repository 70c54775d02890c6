"""Forecasters go on with what they are made for, and the back-test finds out which one to follow."""

import math
import random

import numpy as np
import pytest

from armature.planning.backtest import Backtest
from armature.planning.forecast import Constant, Ewma, Forecaster, Holt, Seasonal

ALL: dict[str, Forecaster] = {
    "constant": Constant(windows=4),
    "ewma": Ewma(),
    "holt": Holt(),
    "seasonal": Seasonal(period_s=240, window_s=10),
}


@pytest.mark.parametrize("name", ALL)
def test_a_load_that_never_changes_goes_on(name: str) -> None:
    one = ALL[name]
    assert one.forecast(np.full(one.min_windows + 30, 7.0), 5) == pytest.approx([7.0] * 5)


def test_a_trend_goes_on_and_dies_away() -> None:
    coming = Holt(damping=0.9).forecast(np.arange(1.0, 60.0), 30)
    assert 59 < coming[0] < 60.2
    assert (np.diff(coming) > 0).all()
    assert (np.diff(coming, 2) < 0).all()


def test_a_falling_load_does_not_become_negative() -> None:
    assert (Holt(damping=1.0).forecast(np.arange(20.0, 0.0, -1.0), 60) >= 0).all()


def test_a_season_comes_again_at_the_level_of_now() -> None:
    wave = np.array([2 + math.sin(2 * math.pi * i / 24) for i in range(48)])
    wave[24:] *= 1.5
    assert Seasonal(period_s=24, window_s=1).forecast(wave, 24) == pytest.approx(wave[24:] * 1.5)


def run(series: list[float], quantile: float = 0.9, horizon: int = 4) -> tuple[Backtest, list[float], list[str]]:
    backtest, values, names = Backtest(ALL, quantile), list[float](), list[str]()
    for value in series:
        backtest.add(value)
        told = backtest.forecast(horizon)
        values.append(told.value)
        names.append(told.forecaster)
    return backtest, values, names


def test_a_season_is_found_by_its_forecaster() -> None:
    series = [10 + 8 * math.sin(2 * math.pi * i / 24) for i in range(200)]
    _, values, names = run(series)
    assert set(names[-60:]) == {"seasonal"}
    for at in range(140, 190):
        assert values[at] == pytest.approx(max(series[at + 1 : at + 5]), rel=0.1)


def test_a_steady_rise_is_not_left_to_those_who_know_no_trend() -> None:
    _, values, names = run([float(i) for i in range(100)])
    assert names[-1] in ALL
    assert values[-1] == pytest.approx(103, rel=0.02), "whoever is followed, the margin makes up for what he lacks"


@pytest.mark.parametrize("quantile", [0.5, 0.8, 0.95])
def test_so_large_a_share_of_peaks_stays_below_as_the_quantile_says(quantile: float) -> None:
    rng = random.Random(1)
    series = [rng.lognormvariate(1.0, 0.5) for _ in range(900)]
    _, values, _ = run(series, quantile)
    held = [values[at] >= max(series[at + 1 : at + 5]) for at in range(150, 890)]
    assert sum(held) / len(held) == pytest.approx(quantile, abs=0.07)


def test_the_first_window_is_taken_as_it_is() -> None:
    _, values, names = run([5.0])
    assert (values, names) == ([5.0], ["constant"])


def test_memory_is_bounded() -> None:
    backtest = Backtest(ALL, 0.9, max_windows=50, max_errors=20)
    for i in range(500):
        backtest.add(float(i % 7))
        backtest.forecast(4)
    assert len(backtest._history) == 50
    assert len(backtest._told) <= 5
    assert {len(errors) for errors in backtest._errors.values()} == {20}


def test_forecasting_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="0 windows after 0"):
        Backtest(ALL, 0.9).forecast(0)
    with pytest.raises(ValueError, match="quantile is 1"):
        Backtest(ALL, 1)


def test_the_first_forecaster_is_followed_until_another_has_clearly_erred_less() -> None:
    rng = random.Random(3)
    noise = [10 + rng.gauss(0, 1) for _ in range(200)]
    forecasters: dict[str, Forecaster] = {"long": Constant(windows=40), "short": Constant(windows=4)}
    backtest = Backtest(forecasters, 0.9)

    def follow(series: list[float]) -> list[str]:
        names: list[str] = []
        for value in series:
            backtest.add(value)
            names.append(backtest.forecast(4).forecaster)
        return names

    assert set(follow(noise)[60:]) == {"long"}
    steps = [10.0 * (1 + i // 20 % 5) for i in range(200)]
    assert follow(steps)[-1] == "short"
