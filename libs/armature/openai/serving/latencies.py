"""Histograms of times that cost a bisection and two additions, less than `observe` of Prometheus' own.

They count in finer steps than they are scraped in, so that whoever looks at a few seconds of them sees quantiles and
not the edges of buckets.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

STEPS = 4
"""In which a bucket is counted."""


class Latencies:
    """Counts times by size."""

    __slots__ = ("_bounds_s", "_edges", "_sum_s", "counts", "edges_s")

    def __init__(self, bounds_s: Sequence[float]) -> None:
        self._bounds_s = bounds_s
        self.edges_s = fine_edges(bounds_s)
        """Upper ends of what `counts` counts; the last count is of times above all."""
        self.counts = [0] * (len(self.edges_s) + 1)
        self._sum_s = 0.0

    def observe(self, seconds: float, times: int = 1) -> None:
        """`times` equal times that add up to `seconds`."""
        if times:
            self.counts[bisect_left(self.edges_s, seconds / times)] += times
            self._sum_s += seconds

    def tell(self, family: HistogramMetricFamily, model: str) -> None:
        """Add what has been observed to a family that is being scraped."""
        below = list(accumulate(self.counts))
        buckets = list(zip(map(str, self._bounds_s), map(float, below[:-1:STEPS]), strict=True))
        family.add_metric([model], [*buckets, ("+Inf", float(below[-1]))], self._sum_s)


class LatenciesByModel(Collector):
    """A histogram with the label `model`."""

    def __init__(self, name: str, text: str, bounds_s: Sequence[float]) -> None:
        self.by_model: dict[str, Latencies] = {}
        self.edges_s = fine_edges(bounds_s)
        self.no_counts = (0,) * (len(self.edges_s) + 1)
        self._name, self._text, self._bounds_s = name, text, bounds_s

    def of(self, model: str) -> Latencies:
        """Of one model, which is served: a name that clients make up must not come here."""
        if model not in self.by_model:
            self.by_model[model] = Latencies(self._bounds_s)
        return self.by_model[model]

    def collect(self) -> Iterable[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._text, labels=["model"])
        for model, latencies in self.by_model.items():
            latencies.tell(family, model)
        yield family


def fine_edges(bounds_s: Sequence[float]) -> tuple[float, ...]:
    """The bounds with steps between them that grow evenly; the first of each `STEPS` is a bound."""
    edges = [low * (high / low) ** (step / STEPS) for low, high in pairwise(bounds_s) for step in range(STEPS)]
    return (*edges, bounds_s[-1])


def quantile(edges_s: Sequence[float], counts: Sequence[int], share: float) -> float | None:
    """The time that `share` of the counted ones do not exceed, evenly spread within a step; None: none was counted.

    Times above all edges count as the last.
    """
    rank = share * sum(counts)
    if not rank:
        return None
    below = 0
    for place, count in enumerate(counts[:-1]):
        if below + count >= rank:
            low = edges_s[place - 1] if place else 0.0
            return low + (edges_s[place] - low) * (rank - below) / count
        below += count
    return edges_s[-1]
