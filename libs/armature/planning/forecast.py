"""What comes next, by what has come: point forecasts of a series of equal windows.

A forecaster keeps nothing: it is given the whole remembered series each time, so a replay of a decision needs nothing
but its input. Which of them to believe, and how far they err, is `backtest.py`.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from armature.routing.checks import check_numbers

Floats = NDArray[np.float64]


class Forecaster(Protocol):
    """Anything that goes on with a series. Adapters to libraries have this shape, too."""

    @property
    def min_windows(self) -> int:
        """Windows without which it says nothing."""
        ...

    def forecast(self, history: Floats, num_windows: int) -> Floats:
        """The next `num_windows` values after `history`, of which there are at least `min_windows`."""
        ...


@dataclass(frozen=True, slots=True)
class Constant:
    """It stays as it is: the mean of the last windows."""

    windows: int = 1
    """1: only the last one counts. More where single windows scatter."""

    def __post_init__(self) -> None:
        check_numbers(self, above_zero=("windows",))

    @property
    def min_windows(self) -> int:
        return 1

    def forecast(self, history: Floats, num_windows: int) -> Floats:
        return np.full(num_windows, history[-self.windows :].mean())


@dataclass(frozen=True, slots=True)
class Ewma:
    """It stays at the mean of the past, in which every window counts less than the next.

    Raises:
        ValueError: alpha is not within 0 and 1.
    """

    alpha: float = 0.3
    """Weight of the newest window: higher follows faster and is shaken more."""

    def __post_init__(self) -> None:
        _check_shares(self)

    @property
    def min_windows(self) -> int:
        return 2

    def forecast(self, history: Floats, num_windows: int) -> Floats:
        weights = self.alpha * (1 - self.alpha) ** np.arange(len(history) - 1, -1, -1.0)
        weights[0] /= self.alpha
        return np.full(num_windows, float(weights @ history))


@dataclass(frozen=True, slots=True)
class Holt:
    """Level and trend, each smoothed; the trend dies away (Gardner and McKenzie, 1985).

    Raises:
        ValueError: a weight is not within 0 and 1.
    """

    alpha: float = 0.4
    beta: float = 0.2
    """Weight of the newest change in the trend."""
    damping: float = 0.9
    """What is left of the trend after each window; 1: it goes on for ever."""

    def __post_init__(self) -> None:
        _check_shares(self)

    @property
    def min_windows(self) -> int:
        return 4

    def forecast(self, history: Floats, num_windows: int) -> Floats:
        level, trend = float(history[0]), float(history[1] - history[0])
        for value in history[1:].tolist():
            expected = level + self.damping * trend
            last, level = level, self.alpha * value + (1 - self.alpha) * expected
            trend = self.beta * (level - last) + (1 - self.beta) * self.damping * trend
        steps = np.cumsum(self.damping ** np.arange(1, num_windows + 1))
        return np.maximum(level + steps * trend, 0.0)


@dataclass(frozen=True, slots=True)
class Seasonal:
    """As one period ago, at the level of now.

    Raises:
        ValueError: there is no period, or smoothing is not within 0 and 1.
    """

    period_s: float = 86_400.0
    """After which load repeats: a day, a week."""
    window_s: float = 15.0
    """Of the series: the planner sets it."""

    def __post_init__(self) -> None:
        check_numbers(self, above_zero=("period_s", "window_s"))

    @property
    def period(self) -> int:
        """In windows."""
        return max(round(self.period_s / self.window_s), 1)

    @property
    def min_windows(self) -> int:
        return self.period + 1

    def forecast(self, history: Floats, num_windows: int) -> Floats:
        period = self.period
        then = history[-period:]
        # A part of a period says nothing of the level.
        before = float(history[-2 * period : -period].mean()) if len(history) >= 2 * period else 0.0
        ratio = min(max(float(then.mean()) / before, 0.5), 2.0) if before > 0 else 1.0
        return then[np.arange(num_windows) % period] * ratio


def _check_shares(part: "Ewma | Holt") -> None:
    for name in part.__slots__:
        if not 0 < getattr(part, name) <= 1:
            raise ValueError(f"{name} is {getattr(part, name)}; it must be above 0 and at most 1")


FORECASTERS: dict[str, type[Constant] | type[Ewma] | type[Holt] | type[Seasonal]] = {
    "constant": Constant,
    "ewma": Ewma,
    "holt": Holt,
    "seasonal": Seasonal,
}
