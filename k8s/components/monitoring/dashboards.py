"""Writes the Grafana dashboards in `dashboards/`: `make dashboards`. Compose and Kubernetes take them from there.

A panel is a title, a unit and what to ask Prometheus for; what a series is called follows from the labels it is by.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "dashboards"
WIDTH, HEIGHT, COLUMNS = 8, 8, 3


@dataclass(frozen=True)
class Panel:
    title: str
    unit: str
    """Grafana's name of it."""
    queries: tuple[str, ...]
    text: str = ""


def panel(title: str, unit: str, *queries: str, text: str = "") -> Panel:
    return Panel(title, unit, queries, text)


def rate(metric: str, by: str = "") -> str:
    return f"sum{f' by ({by})' if by else ''} (rate({metric}[$__rate_interval]))"


def quantile(q: float, metric: str, by: str = "") -> str:
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, sum by ({labels}) (rate({metric}_bucket[$__rate_interval])))"


def leader(by: str, gauge: str) -> str:
    """Of the planner that leads: those that stand by tell what they would do."""
    what = f"{gauge} and on (instance) armature_planner_is_leader == 1"
    return f"max{f' by ({by})' if by else ''} ({what})"


def share(metric: str, label: str, value: str) -> str:
    """Of all that was counted in ten minutes."""
    return f'sum (rate({metric}{{{label}="{value}"}}[10m])) / sum (rate({metric}[10m]))'


BOARDS = {
    "cell": (
        "Armature: what clients get",
        panel("Time to first token, p95", "s", quantile(0.95, "armature_gateway_time_to_first_token_seconds", "model")),
        panel("Between tokens, p95", "s", quantile(0.95, "armature_gateway_inter_token_latency_seconds", "model")),
        panel("Requests by status", "reqps", rate("armature_gateway_requests_total", "status"),
              text="499: the client left before the end."),
        panel("Prompt tokens", "short", rate("armature_gateway_prompt_tokens_total", "model"),
              text="Tokens a second."),
        panel("Output tokens", "short", rate("armature_gateway_output_tokens_total", "model"),
              text="Tokens a second."),
        panel("KV hit rate", "percentunit",
              f"{rate('armature_gateway_cached_tokens_total', 'model')} / "
              f"{rate('armature_gateway_prompt_tokens_total', 'model')}",
              text="Share of the prompts' tokens that were not computed again."),
        panel("Being served", "short", "sum by (job) (armature_gateway_inflight_requests)",
              "sum by (priority) (armature_router_queued_requests)", text="And waiting in routers' queues."),
        panel("Queue time, p95", "s", quantile(0.95, "armature_router_queue_wait_seconds"),
              text="Of requests that waited in a router's queue."),
        panel("Decisions", "reqps", rate("armature_router_decisions_total", "outcome"),
              rate("armature_router_shed_total", "reason"),
              text="remote: the prompt is computed by a prefill worker. With the reasons of what the queue refused."),
        panel("Moved, left, refused", "reqps", rate("armature_gateway_migrations_total"),
              rate("armature_gateway_cancellations_total"), rate("armature_gateway_rate_limited_total", "limit")),
        panel("Whole requests, p95", "s", quantile(0.95, "armature_gateway_request_duration_seconds")),
        panel("Processes", "short", "count by (kind) (armature_build_info)", "sum by (job) (armature_registered)",
              text="And how many of them etcd knows."),
    ),
    "workers": (
        "Armature: workers",
        panel("Running", "short", "armature_worker_running_seqs"),
        panel("Waiting", "short", "armature_worker_waiting_seqs"),
        panel("Prompt tokens to compute", "short", "armature_worker_waiting_prefill_tokens"),
        panel("KV blocks in use", "percentunit", "1 - armature_worker_free_blocks / armature_worker_total_blocks",
              text="Blocks that a new request could not have."),
        panel("Prompt tokens computed", "short", rate("armature_worker_prefill_tokens_total", "instance"),
              text="Tokens a second."),
        panel("Tokens produced", "short", rate("armature_worker_decode_tokens_total", "instance"),
              text="Tokens a second."),
        panel("KV moved between workers", "Bps", rate("armature_worker_kv_transfer_bytes_total", "transport")),
        panel("Reading one prompt's KV, p95", "s",
              quantile(0.95, "armature_worker_kv_transfer_seconds", "transport")),
        panel("Reads that failed", "reqps", rate("armature_worker_fetch_failures_total", "reason"),
              text="The rest of these prompts was computed where it was wanted."),
        panel("Queue time, p95", "s", quantile(0.95, "armature_worker_queue_seconds", "instance"),
              text="From a request's coming to its first step."),
        panel("Preempted", "reqps", rate("armature_worker_preemptions_total", "instance")),
        panel("Failed steps in a row", "short", "armature_worker_failed_steps_in_a_row > 0"),
        panel("Event loop lag, p99", "s", quantile(0.99, "armature_event_loop_lag_seconds", "job")),
    ),
    "kv": (
        "Armature: KV cache and tiers",
        panel("Blocks in the index", "short", "armature_kv_index_blocks", "armature_kv_index_holdings",
              text="Distinct, and one for each worker that holds it."),
        panel("Workers by trust", "short", "sum by (state) (armature_kv_index_trust)",
              text="How far their entries in the index can be trusted."),
        panel("Cached tokens, predicted and found", "short", rate("armature_router_predicted_cached_tokens_total"),
              rate("armature_router_actual_cached_tokens_total"), text="Tokens a second."),
        panel("Index behind", "s", "armature_router_index_stale_seconds",
              text="For how long a router has not followed the index."),
        panel("Repairs", "reqps", rate("armature_kv_index_repairs_total", "reason")),
        panel("Blocks by tier", "short", "sum by (tier, state) (armature_kv_offload_blocks)"),
        panel("Blocks found in tiers", "short", rate("armature_kv_offload_hit_blocks_total", "tier"),
              rate("armature_kv_offload_missed_blocks_total"), text="Blocks a second, with those that were nowhere."),
        panel("Prompt tokens onboarded", "short", rate("armature_worker_onboarded_tokens_total", "tier"),
              text="Tokens a second, read instead of computed."),
        panel("Tier traffic", "Bps", rate("armature_kv_offload_written_bytes_total", "tier"),
              rate("armature_kv_offload_read_bytes_total", "tier"), text="Written, and read."),
        panel("Onboarding one prompt, p95", "s", quantile(0.95, "armature_worker_onboard_seconds")),
        panel("Offered blocks", "short", rate("armature_kv_offload_offered_blocks_total", "outcome"),
              text="Blocks a second, by what became of them."),
        panel("Tier problems", "short", rate("armature_kv_offload_problems_total", "tier, reason")),
    ),
    "planner": (
        "Armature: planner",
        panel("Workers wanted", "short", leader("role, state", 'armature_planner_workers{state="wanted"}'),
              text="By role, as the planner that leads wants them."),
        panel("Workers there", "short", leader("role, state", 'armature_planner_workers{state!="wanted"}'),
              leader("", "armature_planner_draining_workers"), text="Ready, starting and draining."),
        panel("Workers in Prometheus", "short", "count by (job) (armature_worker_running_seqs)",
              text="Those that are scraped: what there really is."),
        panel("Targets held", "percentunit",
              share("armature_planner_attained_steps_total", "outcome", "met"),
              text="Share of steps of ten minutes before which all targets held at their quantile."),
        panel("Time to first token", "s", leader("", "armature_planner_ttft_seconds"),
              leader("", "armature_planner_ttft_predicted_seconds"),
              leader("", "armature_planner_ttft_target_seconds"),
              text="At the targets' quantile: measured, predicted with the workers that are wanted, promised."),
        panel("Between tokens", "s", leader("", "armature_planner_itl_seconds"),
              leader("", "armature_planner_itl_predicted_seconds"), leader("", "armature_planner_itl_target_seconds")),
        panel("Demand", "short", leader("", "armature_planner_demand_workers"),
              text="Foreseen, in workers that would be busy all the time."),
        panel("Forecasts off by", "short", leader("forecaster", "armature_planner_forecast_loss_workers"),
              text="Workers, as pinball loss at the policy's quantile; the least one is followed."),
        panel("Requests", "reqps", leader("", "armature_planner_requests_per_second")),
        panel("Steps by reason", "short", rate("armature_planner_decisions_total", "reason"),
              text="A second, of all planners: those that stand by take every step, too."),
        panel("Plans, and what was in the way", "short", rate("armature_planner_orders_total", "outcome"),
              rate("armature_planner_problems_total", "reason")),
        panel("Start-up, p95", "s", quantile(0.95, "armature_planner_start_up_seconds"),
              text="From asking for a worker to its being ready."),
        panel("Leader", "short", "sum by (instance) (armature_planner_is_leader)", text="1 for whoever leads."),
        panel("A step, p95", "s", quantile(0.95, "armature_planner_step_seconds"), text="Rehearsals included."),
    ),
}  # fmt: skip


def board(uid: str) -> str:
    """The dashboard as Grafana reads it."""
    title, *panels = BOARDS[uid]
    return json.dumps(
        {
            "uid": f"armature-{uid}",
            "title": title,
            "tags": ["armature"],
            "schemaVersion": 39,
            "refresh": "10s",
            "time": {"from": "now-30m", "to": "now"},
            "panels": [_panel(place, one) for place, one in enumerate(panels)],
        },
        indent=1,
    )


def _panel(place: int, shown: Panel) -> dict[str, object]:
    row, column = divmod(place, COLUMNS)
    targets = [
        {"refId": chr(ord("A") + number), "expr": query, "legendFormat": _legend(query, len(shown.queries) > 1)}
        for number, query in enumerate(shown.queries)
    ]
    return {
        "id": place + 1,
        "type": "timeseries",
        "title": shown.title,
        "description": shown.text,
        "datasource": {"type": "prometheus", "uid": "prometheus"},
        "gridPos": {"x": column * WIDTH, "y": row * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": shown.unit, "min": 0}, "overrides": []},
        "targets": targets,
    }


def _legend(query: str, is_one_of_several: bool) -> str:
    """The labels that series differ by, after the metric's short name where a panel has several."""
    by = re.search(r"by \(([^)]*)\)", query)
    labels = ["instance"] if " by " not in query and "(" not in query else by[1].split(", ") if by else []
    shown = [f"{{{{{label}}}}}" for label in labels if label != "le"]
    names = re.findall(
        r"armature_(?:gateway_|router_|worker_|planner_|kv_index_|kv_offload_)?(\w+?)(?:_total|_bucket)?\b", query
    )
    return " ".join([*names[: is_one_of_several or not shown], *shown])


if __name__ == "__main__":
    for uid in BOARDS:
        (FOLDER / f"{uid}.json").write_text(board(uid) + "\n")
