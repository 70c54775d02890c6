"""What the gateway counts. Names and labels are part of its contract with dashboards.

`services/METRICS.md` is made of this and of its like (`make metrics`).
"""

from bisect import bisect_left
from collections.abc import Iterable
from functools import cache
from itertools import accumulate

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from armature.openai.answers import Usage

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_LENGTHS = (16, 64, 256, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)

REQUESTS = Counter(
    "armature_gateway_requests_total", "Requests that have ended; 499: the client left.", ["route", "status"]
)
INFLIGHT = Gauge("armature_gateway_inflight_requests", "Requests that are being served.")
REQUEST_S = Histogram(
    "armature_gateway_request_duration_seconds", "From receipt to the end of the answer.", buckets=_SECONDS
)
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


_PROMPT_TOKENS = Counter("armature_gateway_prompt_tokens_total", "Tokens of prompts that were accepted.", ["model"])
_CACHED_TOKENS = Counter(
    "armature_gateway_cached_tokens_total", "Prompt tokens whose KV was found in a cache.", ["model"]
)
_OUTPUT_TOKENS = Counter("armature_gateway_output_tokens_total", "Tokens that were produced for clients.", ["model"])
_INPUT_LENGTH = Histogram("armature_gateway_input_sequence_tokens", "Length of prompts.", ["model"], buckets=_LENGTHS)
_OUTPUT_LENGTH = Histogram("armature_gateway_output_sequence_tokens", "Length of answers.", ["model"], buckets=_LENGTHS)
_TTFT_S = Histogram(
    "armature_gateway_time_to_first_token_seconds", "From receipt to the first token.", ["model"], buckets=_SECONDS
)


class TokenGaps:
    """One model's inter-token latencies: a bisection and two additions per token, cheaper than `observe`."""

    __slots__ = ("_counts", "_sum_s")

    bounds = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

    def __init__(self) -> None:
        self._counts = [0] * (len(self.bounds) + 1)
        self._sum_s = 0.0

    def observe(self, gap_s: float, tokens: int) -> None:
        """`tokens` tokens came `gap_s` after what came before them."""
        if tokens:
            self._counts[bisect_left(self.bounds, gap_s / tokens)] += tokens
            self._sum_s += gap_s

    def tell(self, family: HistogramMetricFamily, model: str) -> None:
        """Add what has been observed to a family that is being scraped."""
        edges = (*map(str, self.bounds), "+Inf")
        buckets = list(zip(edges, accumulate(self._counts), strict=True))
        family.add_metric([model], buckets, self._sum_s)


class _GapsOfModels(Collector):
    """The histogram of inter-token latency."""

    def __init__(self) -> None:
        self.by_model: dict[str, TokenGaps] = {}

    def collect(self) -> Iterable[HistogramMetricFamily]:
        family = HistogramMetricFamily(
            "armature_gateway_inter_token_latency_seconds", "Time between tokens of one answer.", labels=["model"]
        )
        for model, gaps in self.by_model.items():
            gaps.tell(family, model)
        yield family


_GAPS = _GapsOfModels()
REGISTRY.register(_GAPS)


class ModelMetrics:
    """What is counted by model. A label costs a look-up, so a generation has this looked up once."""

    def __init__(self, model: str) -> None:
        self.ttft_s = _TTFT_S.labels(model)
        self.gaps = _GAPS.by_model.setdefault(model, TokenGaps())
        self._prompt_tokens = _PROMPT_TOKENS.labels(model)
        self._cached_tokens = _CACHED_TOKENS.labels(model)
        self._output_tokens = _OUTPUT_TOKENS.labels(model)
        self._input_length = _INPUT_LENGTH.labels(model)
        self._output_length = _OUTPUT_LENGTH.labels(model)

    def accepted(self, *prompts: int) -> None:
        """Prompts of so many tokens are to be served."""
        for tokens in prompts:
            self._prompt_tokens.inc(tokens)
            self._input_length.observe(tokens)

    def ended(self, usage: Usage) -> None:
        """An answer has ended, however."""
        self._output_tokens.inc(usage.completion_tokens)
        self._output_length.observe(usage.completion_tokens)
        self._cached_tokens.inc(usage.cached_tokens)


@cache
def of_model(name: str) -> ModelMetrics:
    """For a model that is being served: a name that a client makes up must not come here."""
    return ModelMetrics(name)
