"""Writes `services/METRICS.md`, the reference of every metric, from the metrics themselves: `make metrics`.

Every module that makes metrics is imported, so nothing can be missing; what each label's values are limited by is told
here, and a label that is not in the table has no place in a metric.
"""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from prometheus_client import REGISTRY
from prometheus_client.metrics import MetricWrapperBase

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "services" / "METRICS.md"

LABEL_BOUNDS = {
    "code": "gRPC status codes",
    "event": "a fixed list in the code",
    "forecaster": "those that the policy names",
    "kind": "the values that the text names; of `armature_build_info`, the services",
    "limit": "a tenant's three limits",
    "member": "one value a process: its own id",
    "method": "methods that this process serves; calls of others are not counted",
    "model": "models that workers serve, never what a client asks for",
    "operation": "a fixed list in the code",
    "outcome": "a fixed list in the code",
    "priority": "-10 to 10",
    "reason": "a fixed list in the code",
    "role": "aggregated, prefill, decode",
    "route": "routes that this gateway serves",
    "state": "a fixed list in the code",
    "status": "HTTP status codes that the gateway gives",
    "tier": "g1 to g4",
    "transport": "nixl, grpc",
    "version": "one value a process",
    "where": "here, redis",
    "worker": "workers that are there; those that have left are removed",
}
"""Never a tenant, key, session, request or anything else that clients make up."""

SECTIONS = {
    "gateway": "gateway",
    "router": "router",
    "kv_index": "kv-index",
    "worker": "prefill-worker and decode-worker",
    "kv_offload": "kv-offload",
    "planner": "planner",
    "": "every service",
}

ELSEWHERE = """\
| what | here | vLLM | SGLang | Dynamo |
|---|---|---|---|---|
| time to first token | `armature_gateway_time_to_first_token_seconds` | `vllm:time_to_first_token_seconds` | `sglang:time_to_first_token_seconds` | `dynamo_frontend_time_to_first_token_seconds` |
| time between tokens | `armature_gateway_inter_token_latency_seconds` | `vllm:inter_token_latency_seconds` | `sglang:inter_token_latency_seconds` | `dynamo_frontend_inter_token_latency_seconds` |
| whole request | `armature_gateway_request_duration_seconds` | `vllm:e2e_request_latency_seconds` | `sglang:e2e_request_latency_seconds` | `dynamo_frontend_request_duration_seconds` |
| lengths | `armature_gateway_input_sequence_tokens`, `armature_gateway_output_sequence_tokens` | `vllm:request_prompt_tokens`, `vllm:request_generation_tokens` | - | `dynamo_frontend_input_sequence_tokens`, `dynamo_frontend_output_sequence_tokens` |
| queue time | `armature_router_queue_wait_seconds`, `armature_worker_queue_seconds` | `vllm:request_queue_time_seconds` | `sglang:queue_time_seconds` | - |
| running, waiting | `armature_worker_running_seqs`, `armature_worker_waiting_seqs` | `vllm:num_requests_running`, `vllm:num_requests_waiting` | `sglang:num_running_reqs`, `sglang:num_queue_reqs` | - |
| KV hit rate | `armature_gateway_cached_tokens_total` / `armature_gateway_prompt_tokens_total` | `vllm:prefix_cache_hits_total` / `vllm:prefix_cache_queries_total` | `sglang:cache_hit_rate` | `dynamo_component_router_kv_hit_rate` |
| planner: targets, what is, what is wanted | `armature_planner_ttft_target_seconds`, `armature_planner_ttft_seconds`, `armature_planner_workers` | - | - | `dynamo_planner_observed_ttft_ms`, `dynamo_planner_predicted_num_prefill_replicas` |
| KV in use | 1 - `armature_worker_free_blocks` / `armature_worker_total_blocks` | `vllm:kv_cache_usage_perc` | `sglang:token_usage` | - |
"""  # noqa: E501 -- a table


@dataclass(frozen=True, order=True)
class Metric:
    name: str
    """As it is queried; of a histogram without `_bucket`, `_sum`, `_count`."""
    type: str
    labels: tuple[str, ...]
    text: str

    @property
    def section(self) -> str:
        return next(key for key in SECTIONS if self.name.startswith(f"armature_{key}"))


@cache
def metrics() -> tuple[Metric, ...]:
    """All metrics of the code base."""
    for folder in (ROOT / "libs", ROOT / "services"):
        for path in sorted(folder.rglob("*.py")):
            if "from prometheus_client import" in path.read_text():
                package = path.relative_to(ROOT / "libs" if folder.name == "libs" else ROOT)
                importlib.import_module(".".join(package.with_suffix("").parts))
    return tuple(sorted(metric for metric in _registered() if metric.name.startswith("armature_")))


def _registered() -> Iterator[Metric]:
    for collector in set(REGISTRY._collector_to_names):
        families = [collector] if isinstance(collector, MetricWrapperBase) else list(collector.collect())
        for family in families:
            name = getattr(family, "_name", "") or family.name
            kind = getattr(family, "_type", "") or family.type
            text = getattr(family, "_documentation", "") or family.documentation
            labels = tuple(getattr(family, "_labelnames", ()))
            yield Metric(name + "_total" * (kind == "counter"), kind, labels, text)


def page() -> str:
    """The text of the page."""
    found = metrics()
    parts = [
        "# Metrics\n\n"
        "Each process serves `/metrics` on its `--metrics-port`, the gateway also on its HTTP port. This page is made\n"
        "from the code by `make metrics`. Histograms have `_bucket`, `_sum` and `_count`.\n"
    ]
    for key, title in SECTIONS.items():
        rows = [_row(metric) for metric in found if metric.section == key]
        if rows:
            parts.append(f"## {title}\n\n| metric | type | says |\n|---|---|---|\n" + "".join(rows))
    used = sorted({label for metric in found for label in metric.labels})
    bounds = "".join(f"| `{label}` | {LABEL_BOUNDS.get(label, '**unknown**')} |\n" for label in used)
    parts.append("## Labels\n\nNo client can make series: a label has as many values as the table says.\n\n"
                 f"| label | values |\n|---|---|\n{bounds}")  # fmt: skip
    parts.append(f"## The same elsewhere\n\n{ELSEWHERE}")
    return "\n".join(parts)


def _row(metric: Metric) -> str:
    labels = "{" + ", ".join(metric.labels) + "}" if metric.labels else ""
    return f"| `{metric.name}{labels}` | {metric.type} | {metric.text} |\n"


if __name__ == "__main__":
    PAGE.write_text(page())
