"""The last minutes of requests at this gateway, from what it counts anyhow.

Taken whether or not anybody watches, so that who comes to look sees what has been: a tenth of a millisecond every two
seconds.
"""

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from prometheus_client import Counter

from armature.console.shapes import Point
from armature.openai.serving import metrics
from armature.openai.serving.latencies import Latencies, LatenciesByModel, quantile

INTERVAL_S = 2.0
KEPT_POINTS = 300
"""Ten minutes."""
RATE_POINTS, QUANTILE_POINTS = 3, 15
"""Over how many intervals rates and quantiles are taken."""

_CLIENT_LEFT = "499"


@dataclass(frozen=True, slots=True)
class Counts:
    """What a gateway had counted at one moment."""

    at_s: float
    requests: float = 0.0
    refused: float = 0.0
    failed: float = 0.0
    prompt_tokens: float = 0.0
    output_tokens: float = 0.0
    inflight: int = 0
    ttft: tuple[int, ...] = ()
    itl: tuple[int, ...] = ()


class Traffic:
    """`take` is the pure part; `run` takes what the process counts."""

    def __init__(self, ttft_edges_s: Sequence[float], itl_edges_s: Sequence[float]) -> None:
        self.points: deque[Point] = deque(maxlen=KEPT_POINTS)
        self.taken = 0
        """Points so far, those included that are no longer kept."""
        self._edges_s = ttft_edges_s, itl_edges_s
        self._past: deque[Counts] = deque(maxlen=QUANTILE_POINTS)

    def take(self, counts: Counts, wall_s: float) -> None:
        """Add a point, but for the first counts, which only begin."""
        past, self._past = [*self._past], self._past
        self._past.append(counts)
        if not past:
            return
        before = past[-RATE_POINTS:][0]
        seconds = counts.at_s - before.at_s

        def per_s(name: str) -> float:
            return (getattr(counts, name) - getattr(before, name)) / seconds

        ttft, itl = (
            [now - then for now, then in zip(getattr(counts, name), getattr(past[0], name), strict=True)]
            for name in ("ttft", "itl")
        )
        ttft_edges_s, itl_edges_s = self._edges_s
        self.points.append(
            Point(
                at=wall_s,
                inflight_requests=counts.inflight,
                requests_per_s=per_s("requests"),
                refused_per_s=per_s("refused"),
                failed_per_s=per_s("failed"),
                prompt_tokens_per_s=per_s("prompt_tokens"),
                output_tokens_per_s=per_s("output_tokens"),
                ttft_s_p50=quantile(ttft_edges_s, ttft, 0.5),
                ttft_s_p95=quantile(ttft_edges_s, ttft, 0.95),
                itl_s_p50=quantile(itl_edges_s, itl, 0.5),
                itl_s_p95=quantile(itl_edges_s, itl, 0.95),
            )
        )
        self.taken += 1

    def since(self, taken: int) -> list[Point]:
        """The points that were taken after so many others, as far as they are kept."""
        missing = min(self.taken - taken, len(self.points))
        return [*self.points][len(self.points) - missing :]

    async def run(self) -> None:
        """Take what this process counts, until cancelled."""
        now_s = asyncio.get_running_loop().time
        while True:
            self.take(read_counts(now_s()), time.time())
            await asyncio.sleep(INTERVAL_S)


def gateway_traffic() -> Traffic:
    """Of the requests that this process serves."""
    return Traffic(metrics.TTFT_S.edges_s, metrics.GAPS_S.edges_s)


def read_counts(now_s: float) -> Counts:
    """What this process has counted up to now."""
    statuses = list(_samples(metrics.REQUESTS))
    ttft, itl = _summed(metrics.TTFT_S), _summed(metrics.GAPS_S)
    return Counts(
        at_s=now_s,
        requests=sum(value for _, value in statuses),
        refused=sum(value for status, value in statuses if status[0] == "4" and status != _CLIENT_LEFT),
        failed=sum(value for status, value in statuses if status[0] == "5"),
        prompt_tokens=sum(value for _, value in _samples(metrics.PROMPT_TOKENS)),
        output_tokens=sum(ttft) + sum(itl),  # their own counter tells of a long answer only when it ends
        inflight=int(sum(sample.value for family in metrics.INFLIGHT.collect() for sample in family.samples)),
        ttft=ttft,
        itl=itl,
    )


def _samples(counter: Counter) -> Iterable[tuple[str, float]]:
    """Statuses, empty for counters that have none, and values."""
    for family in counter.collect():
        for sample in family.samples:
            if sample.name.endswith("_total"):
                yield sample.labels.get("status", ""), sample.value


def _summed(histogram: LatenciesByModel) -> tuple[int, ...]:
    """Of all models."""
    each: list[Latencies] = [*histogram.by_model.values()]
    return tuple(map(sum, zip(*(one.counts for one in each), strict=True))) if each else histogram.no_counts
