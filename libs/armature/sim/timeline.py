"""How a run went over time, in a bounded number of equal spans that grow with the run."""

from collections.abc import Sequence

_MOST_SPANS = 512
_FIRST_WIDTH_S = 1.0


class Timeline:
    """Sums of value times duration, by quantity and span.

    It begins with spans of a second; whenever they don't reach, two neighbours become one.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.width_s = _FIRST_WIDTH_S
        self._sums = {name: [0.0] * _MOST_SPANS for name in names}
        self._end_s = 0.0

    def hold(self, name: str, value: float, from_s: float, to_s: float) -> None:
        """A quantity had a value for a while; quantities may be told in any order."""
        while to_s > _MOST_SPANS * self.width_s:
            self._widen()
        self._end_s = max(self._end_s, to_s)
        width_s, sums = self.width_s, self._sums[name]
        first = int(from_s / width_s)
        if to_s <= (first + 1) * width_s:
            sums[first] += value * (to_s - from_s)
            return
        while from_s < to_s:
            until_s = min((first + 1) * width_s, to_s)
            sums[first] += value * (until_s - from_s)
            from_s, first = until_s, first + 1

    def means(self, name: str) -> list[float]:
        """The mean of a quantity in each span, up to the last that anything was told of."""
        num_spans = min(int(self._end_s / self.width_s) + 1, _MOST_SPANS)
        return [value / self.width_s for value in self._sums[name][:num_spans]]

    def _widen(self) -> None:
        half = _MOST_SPANS // 2
        for name, sums in self._sums.items():
            merged = [sums[i] + sums[i + 1] for i in range(0, _MOST_SPANS, 2)]
            self._sums[name] = merged + [0.0] * half
        self.width_s *= 2
