"""What the gateway counts. Names and labels are part of its contract with dashboards.

`services/METRICS.md` is made of this and of its like (`make metrics`).
"""

from functools import cache

from prometheus_client import REGISTRY, Counter, Gauge, Histogram

from armature.openai.answers import Usage
from armature.openai.serving.latencies import LatenciesByModel

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_LENGTHS = (16, 64, 256, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)

REQUESTS = Counter(
    "armature_gateway_requests_total", "Requests that have ended; 499: the client left.", ["route", "status"]
)
INFLIGHT = Gauge("armature_gateway_inflight_requests", "Requests that are being served.")
CONNECTIONS = Gauge("armature_gateway_http_connections", "Connections to the HTTP port.")
CONNECTIONS_REFUSED = Counter(
    "armature_gateway_http_connections_refused_total",
    "Connections beyond --max-connections (all_taken) or those of one address, told so or closed.",
    ["reason"],
)
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
ROUTER_FALLBACKS = Counter(
    "armature_gateway_router_fallbacks_total",
    "Streams to routers on their gRPC ports, since those for streams were out of reach.",
)
MIGRATIONS = Counter("armature_gateway_migrations_total", "Requests moved to another worker.")
NEXT_TURNS = Counter(
    "armature_gateway_next_turns_total",
    "Chats whose next turn was to be prefilled ahead, by what became of it.",
    ["outcome"],
)
NEXT_TURN_TOKENS = Counter("armature_gateway_next_turn_tokens_total", "Prompt tokens that were prefilled ahead.")
LOG_LOST = Counter("armature_gateway_request_log_lost_total", "Requests that the request log has left out.")
CANCELLATIONS = Counter("armature_gateway_cancellations_total", "Requests whose client left before the end.")


PROMPT_TOKENS = Counter("armature_gateway_prompt_tokens_total", "Tokens of prompts that were accepted.", ["model"])
CACHED_TOKENS = Counter(
    "armature_gateway_cached_tokens_total", "Prompt tokens whose KV was found in a cache.", ["model"]
)
OUTPUT_TOKENS = Counter("armature_gateway_output_tokens_total", "Tokens that were produced for clients.", ["model"])
_INPUT_LENGTH = Histogram("armature_gateway_input_sequence_tokens", "Length of prompts.", ["model"], buckets=_LENGTHS)
_OUTPUT_LENGTH = Histogram("armature_gateway_output_sequence_tokens", "Length of answers.", ["model"], buckets=_LENGTHS)


TTFT_S = LatenciesByModel("armature_gateway_time_to_first_token_seconds", "From receipt to the first token.", _SECONDS)
GAPS_S = LatenciesByModel(
    "armature_gateway_inter_token_latency_seconds",
    "Time between tokens of one answer.",
    (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
REGISTRY.register(TTFT_S)
REGISTRY.register(GAPS_S)


class ModelMetrics:
    """What is counted by model. A label costs a look-up, so a generation has this looked up once."""

    def __init__(self, model: str) -> None:
        self.ttft_s = TTFT_S.of(model)
        self.gaps_s = GAPS_S.of(model)
        self._prompt_tokens = PROMPT_TOKENS.labels(model)
        self._cached_tokens = CACHED_TOKENS.labels(model)
        self._output_tokens = OUTPUT_TOKENS.labels(model)
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
