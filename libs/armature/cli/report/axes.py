"""Axes of pictures: where marks go, and how numbers are written beside them."""

import math
from typing import NamedTuple


class Axis(NamedTuple):
    """From a quantity to a share of the picture's side."""

    low: float
    high: float
    is_log: bool = False

    def at(self, value: float) -> float:
        """0 at the low end, 1 at the high one; what lies beyond is put there."""
        if self.is_log:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return min(max(share, 0.0), 1.0)

    @property
    def ticks(self) -> list[float]:
        """Round numbers, four to seven of them, or powers of ten."""
        if self.is_log:
            low, high = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            return [10.0**power for power in range(low, high + 1)]
        step = _round_step((self.high - self.low) / 5)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def linear(values: list[float]) -> Axis:
    """From 0 to a little above the largest."""
    most = max(values, default=0.0)
    return Axis(0.0, most * 1.05 if most > 0 else 1.0)


def logarithmic(values: list[float]) -> Axis:
    """Whole powers of ten around all values."""
    low, high = min(values, default=1.0), max(values, default=1.0)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return Axis(10.0**first, 10.0 ** max(last, first + 1), is_log=True)


def written(value: float) -> str:
    """Short: `0.05`, `20`, `1,500`, `12k`."""
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:,g}" if abs(value) >= 1e-3 or not value else f"{value:.0e}"


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= rough - 1e-12)
