"""Serves `armature.v1.Router`: one stream per gateway, all queries of a message answered in one message."""

import itertools
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from opentelemetry.trace import SpanKind
from prometheus_client import Counter, Gauge, Histogram

from armature.routing.decision import Placed, Rejected
from armature.routing.history import History
from armature.routing.router import RoutingCore
from armature.runtime.peer_routers import Peers
from armature.runtime.placement import placement_of, query_of
from armature.runtime.policies import load_policy, shipped_policies
from armature.runtime.telemetry import is_tracing, span
from armature.v1 import router_pb2, router_pb2_grpc
from armature.v1.common_pb2 import Member
from services.router.explain import Explainer

_decisions = Counter("armature_router_decisions_total", "Queries answered, by what was decided.", ["outcome"])
_local, _remote = _decisions.labels("local"), _decisions.labels("remote")
_decision_s = Histogram(
    "armature_router_decision_seconds", "Time to decide where one request goes.",
    buckets=(2.5e-5, 5e-5, 1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3, 3.2e-3, 1e-2, 3e-2),
)  # fmt: skip
_prompt_tokens = Counter("armature_router_prompt_tokens_total", "Prompt tokens of placed requests.")
_overlap_tokens = Counter("armature_router_overlap_tokens_total", "Those of them believed to be on the decode worker.")
_in_flight = Gauge("armature_router_requests_in_flight", "Placed requests that have not ended.")
_gateways = Gauge("armature_router_gateways", "Open Route streams.")

Assume = Callable[[str, bytes], None]
"""Is told of every prompt that was placed: on which worker, and its blocks' hashes as they travel."""


class RouterServicer(router_pb2_grpc.RouterServicer):
    """Decodes, lets the core decide, encodes. `members` has the record of every worker that the core knows."""

    def __init__(
        self,
        core: RoutingCore,
        members: Mapping[str, Member],
        history: History,
        assume: Assume | None = None,
        peers: Peers | None = None,
    ) -> None:
        self._core = core
        self._members = members
        self._history = history
        self._assume = assume
        self._peers = peers
        self._explainer = Explainer(history, {name: load_policy(name) for name in shipped_policies()})
        self._numbers = itertools.count(1)
        _in_flight.set_function(lambda: core.requests_in_flight)

    async def Route(
        self, request_iterator: AsyncIterator[router_pb2.RouteRequest], context: Any
    ) -> AsyncIterator[router_pb2.RouteResponse]:
        owner = str(next(self._numbers))
        _gateways.inc()
        try:
            async for request in request_iterator:
                # Progress first: a request that is placed again has ended before.
                for progress in request.progress:
                    self._note(owner, progress)
                if request.queries:
                    yield router_pb2.RouteResponse(placements=[self._answer(owner, query) for query in request.queries])
        finally:
            _gateways.dec()
            for request_id in self._core.forget(owner):
                self._tell_peers(owner, request_id, router_pb2.Progress.KIND_FINISHED)

    async def Explain(self, request: router_pb2.ExplainRequest, context: Any) -> router_pb2.ExplainResponse:
        return self._explainer.explain(request, time.monotonic())

    def _note(self, owner: str, progress: router_pb2.Progress) -> None:
        if progress.kind == router_pb2.Progress.KIND_FIRST_TOKEN:
            self._core.first_token(owner, progress.request_id, progress.cached_tokens)
            self._history.first_token(owner, progress.request_id, time.monotonic(), progress.cached_tokens)
        elif progress.kind == router_pb2.Progress.KIND_FINISHED:
            self._core.finish(owner, progress.request_id)
        self._tell_peers(owner, progress.request_id, progress.kind)

    def _tell_peers(self, owner: str, request_id: str, kind: "router_pb2.Progress.Kind.ValueType") -> None:
        if self._peers is not None:
            self._peers.progressed(owner, request_id, kind)

    def _answer(self, owner: str, query: router_pb2.Query) -> router_pb2.Placement:
        if not is_tracing():
            return placement_of(query.query_id, self._place(owner, query), self._members)
        with span("route", traceparent=query.traceparent, kind=SpanKind.SERVER) as open_span:
            outcome = self._place(owner, query)
            open_span.set_attributes({"request": query.request_id, "reason": outcome.reason})
            return placement_of(query.query_id, outcome, self._members)

    def _place(self, owner: str, query: router_pb2.Query) -> Placed | Rejected:
        started_s = time.perf_counter()
        asked, now_s = query_of(query, owner), time.monotonic()
        outcome = self._core.place(asked, now_s)
        _decision_s.observe(time.perf_counter() - started_s)
        self._history.add(asked, outcome, now_s)
        if isinstance(outcome, Placed):
            if self._assume is not None:
                for worker_id in filter(None, (outcome.chosen.decode_id, outcome.chosen.prefill_id)):
                    self._assume(worker_id, query.sequence_hashes)
            if self._peers is not None:
                self._peers.placed(outcome)
            (_remote if outcome.chosen.prefill_id else _local).inc()
            _prompt_tokens.inc(query.prompt_tokens)
            _overlap_tokens.inc(outcome.overlap_tokens)
        else:
            _decisions.labels(outcome.code.name.lower()).inc()
        return outcome
