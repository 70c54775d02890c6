"""What a router counts of its decisions and of its queue."""

from collections.abc import Mapping

from prometheus_client import Counter, Gauge, Histogram

from armature.routing.decision import Placed, Rejected
from armature.routing.queueing.outcome import Outcome

DECISION_S = Histogram(
    "armature_router_decision_seconds", "Time to decide where one request goes.",
    buckets=(2.5e-5, 5e-5, 1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3, 3.2e-3, 1e-2, 3e-2),
)  # fmt: skip
_decisions = Counter("armature_router_decisions_total", "Queries answered, by what was decided.", ["outcome"])
_local, _remote = _decisions.labels("local"), _decisions.labels("remote")
_prompt_tokens = Counter("armature_router_prompt_tokens_total", "Prompt tokens of placed requests.")
_overlap_tokens = Counter("armature_router_overlap_tokens_total", "Prompt tokens believed to be on the decode worker.")
_wait_s = Histogram(
    "armature_router_queue_wait_seconds", "Time in the queue of requests that were placed from it.",
    buckets=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0),
)  # fmt: skip
_shed = Counter("armature_router_shed_total", "Requests that the queue refused, by why.", ["reason"])
_queued = Gauge("armature_router_queued_requests", "Requests in the queue, by priority.", ["priority"])
_queued_s = Gauge("armature_router_queued_work_seconds", "What computing the prompts in the queue takes.", ["priority"])


def count(outcome: Outcome) -> None:
    """A request has its final outcome."""
    answer = outcome.answer
    if isinstance(answer, Placed):
        (_remote if answer.chosen.prefill_id else _local).inc()
        _prompt_tokens.inc(outcome.query.prompt_tokens)
        _overlap_tokens.inc(answer.overlap_tokens)
        if outcome.waited_s:
            _wait_s.observe(outcome.waited_s)
    elif isinstance(answer, Rejected):
        _decisions.labels(answer.code.name.lower()).inc()
        if outcome.shed:
            _shed.labels(outcome.shed.name.lower()).inc()


def measure_queue(by_band: Mapping[int, tuple[int, float]]) -> None:
    """So many requests wait, and so many seconds of their work, by priority."""
    _queued.clear()
    _queued_s.clear()
    for priority, (requests, work_s) in by_band.items():
        _queued.labels(str(priority)).set(requests)
        _queued_s.labels(str(priority)).set(work_s)
