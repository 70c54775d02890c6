"""Which forecast to believe, and how much to add to it: each is held to what came after it had spoken.

What is forecast is the highest window until a worker that is started now would be ready, at a quantile: the point
forecast, and on top the quantile of how far earlier ones of the same forecaster fell short. The first
forecaster is followed until another has clearly less loss at that quantile (pinball loss: Koenker and Bassett, 1978).
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from armature.planning.forecast import Constant, Forecaster

Floats = NDArray[np.float64]

_FIRST = "constant"
_CLEARLY = 0.8
"""Times the loss of the first forecaster: what errs a little less has been lucky, and changing one's mind costs."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """The highest window within the horizon."""

    value: float
    """At the quantile asked for."""
    point: float
    """As the forecaster said."""
    forecaster: str
    losses: Mapping[str, float] = field(default_factory=dict[str, float])
    """Mean loss of every forecaster that could be judged."""


@dataclass(slots=True)
class _Told:
    """What forecasters said when the series had so many windows."""

    at: int
    peaks: Mapping[str, float]


class Backtest:
    """Keeps a bounded series, the forecasters' errors, and nothing else.

    Raises:
        ValueError: the quantile is no share, or something that is remembered has no room.
    """

    def __init__(
        self, forecasters: Mapping[str, Forecaster], quantile: float, *, max_windows: int = 720, max_errors: int = 120
    ) -> None:
        if not 0 < quantile < 1:
            raise ValueError(f"quantile is {quantile}; it must be above 0 and below 1")
        if max_windows < 2 or max_errors < 2:
            raise ValueError(f"max_windows is {max_windows}, max_errors {max_errors}; both must be at least 2")
        self._forecasters = dict(forecasters) or {_FIRST: Constant()}
        self._quantile = quantile
        self._history: deque[float] = deque(maxlen=max_windows)
        self._num_windows = 0
        self._told: deque[_Told] = deque()
        self._errors = {name: deque[float](maxlen=max_errors) for name in self._forecasters}

    def add(self, value: float) -> None:
        """The next window has ended."""
        self._history.append(value)
        self._num_windows += 1

    def forecast(self, num_windows: int) -> Forecast:
        """The highest of the next windows; to be asked after each `add`.

        Raises:
            ValueError: no window has ended yet, or none is asked for.
        """
        if not self._history or num_windows < 1:
            raise ValueError(f"a forecast of {num_windows} windows after {len(self._history)} makes no sense")
        self._judge(num_windows)
        history = np.array(self._history)
        able = {name: one for name, one in self._forecasters.items() if len(history) >= one.min_windows}
        peaks = {name: float(one.forecast(history, num_windows).max()) for name, one in able.items()}
        if not peaks:
            peaks = {_FIRST: float(history[-1])}
        self._told.append(_Told(self._num_windows, peaks))
        losses = {name: self._loss(name) for name in peaks if self._errors.get(name)}
        best = min(losses, key=lambda name: (losses[name], name)) if losses else next(iter(peaks))
        first = next(iter(peaks))
        if first in losses and losses[best] > _CLEARLY * losses[first]:
            best = first
        return Forecast(max(peaks[best] + self._margin(best), 0.0), peaks[best], best, losses)

    def _judge(self, num_windows: int) -> None:
        """Compare what was said so many windows ago with what came."""
        while self._told and self._told[0].at + num_windows <= self._num_windows:
            told = self._told.popleft()
            first = len(self._history) - (self._num_windows - told.at)
            came = max([self._history[i] for i in range(max(first, 0), min(first + num_windows, len(self._history)))])
            for name, peak in told.peaks.items():
                if name in self._errors:
                    self._errors[name].append(came - peak)

    def _margin(self, name: str) -> float:
        errors = self._errors.get(name)
        return _quantile(errors, self._quantile) if errors else 0.0

    def _loss(self, name: str) -> float:
        short = np.array(self._errors[name]) - self._margin(name)
        return float(np.maximum(self._quantile * short, (self._quantile - 1) * short).mean())


def _quantile(values: "deque[float]", share: float) -> float:
    """As with conformal prediction one value more is assumed, so that few errors make no one sure."""
    ordered = sorted(values)
    return ordered[min(math.ceil(share * (len(ordered) + 1)), len(ordered)) - 1]
