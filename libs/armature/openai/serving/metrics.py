"""What the gateway counts. Names and labels are part of its contract with dashboards."""

from bisect import bisect_left
from collections.abc import Iterable

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)

REQUESTS = Counter(
    "armature_gateway_requests_total", "Requests that have ended; 499: the client left.", ["route", "status"]
)
INFLIGHT = Gauge("armature_gateway_inflight_requests", "Requests that are being served.")
PROMPT_TOKENS = Counter("armature_gateway_prompt_tokens_total", "Tokens of prompts that were accepted.")
CACHED_TOKENS = Counter("armature_gateway_cached_tokens_total", "Of those, tokens whose KV was found in a cache.")
OUTPUT_TOKENS = Counter("armature_gateway_output_tokens_total", "Tokens that were produced for clients.")
TTFT_S = Histogram("armature_gateway_ttft_seconds", "From receipt to the first token.", buckets=_SECONDS)
REQUEST_S = Histogram("armature_gateway_request_seconds", "From receipt to the end of the answer.", buckets=_SECONDS)
PREPARE_S = Histogram(
    "armature_gateway_prepare_seconds",
    "Rendering, tokenizing and hashing a prompt.",
    buckets=(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0),
)
ROUTE_S = Histogram(
    "armature_gateway_route_seconds",
    "From asking to a placement.",
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5),
)
ROUTED_LOCALLY = Counter("armature_gateway_routed_locally_total", "Placements decided here: no router could be asked.")
MIGRATIONS = Counter("armature_gateway_migrations_total", "Requests moved to another worker.")
NEXT_TURNS = Counter(
    "armature_gateway_next_turns_total",
    "Chats whose next turn was to be prefilled ahead, by what became of it.",
    ["outcome"],
)
NEXT_TURN_TOKENS = Counter("armature_gateway_next_turn_tokens_total", "Prompt tokens that were prefilled ahead.")
LOG_LOST = Counter("armature_gateway_request_log_lost_total", "Requests that the request log has left out.")
CANCELLATIONS = Counter("armature_gateway_cancellations_total", "Requests whose client left before the end.")


class TokenGaps(Collector):
    """The histogram of inter-token latency: a bisection and two additions per token, cheaper than `observe`."""

    def __init__(self) -> None:
        self._bounds = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum_s = 0.0
        REGISTRY.register(self)

    def observe(self, gap_s: float, tokens: int) -> None:
        """`tokens` tokens came `gap_s` after what came before them."""
        if tokens:
            self._counts[bisect_left(self._bounds, gap_s / tokens)] += tokens
            self._sum_s += gap_s

    def collect(self) -> Iterable[HistogramMetricFamily]:
        cumulated = 0
        buckets: list[tuple[str, float]] = []
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            cumulated += count
            buckets.append(("+Inf" if bound == float("inf") else str(bound), cumulated))
        yield HistogramMetricFamily(
            "armature_gateway_itl_seconds", "Time between tokens of one answer.", buckets=buckets, sum_value=self._sum_s
        )


TOKEN_GAPS = TokenGaps()
