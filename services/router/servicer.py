"""Serves `armature.v1.Router`: one stream per gateway; whatever is decided at once is answered in one message."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import Any

from opentelemetry.trace import SpanKind
from prometheus_client import Gauge

from armature.routing.decision import Placed, Query, Rejected
from armature.routing.history import History
from armature.routing.queueing.dispatcher import Dispatcher
from armature.routing.queueing.outcome import Outcome
from armature.runtime import decision_metrics
from armature.runtime.news_gate import NewsGate
from armature.runtime.outbox import Outbox
from armature.runtime.peer_routers import Peers
from armature.runtime.placement import answered_of, placement_of, query_of
from armature.runtime.policies import load_policy, shipped_policies
from armature.runtime.request_news import RequestLog
from armature.runtime.router_stats import stats_of
from armature.runtime.telemetry import is_tracing, span
from armature.v1 import router_pb2, router_pb2_grpc
from armature.v1.common_pb2 import Member
from services.router.explain import Explainer

_in_flight = Gauge("armature_router_requests_in_flight", "Placed requests that have not ended.")
_gateways = Gauge("armature_router_gateways", "Open Route streams.")

_Send = Callable[[router_pb2.RouteResponse], None]
Assume = Callable[[str, bytes], None]
"""Is told of every prompt that was placed: on which worker, and its blocks' hashes as they travel."""


class RouterServicer(router_pb2_grpc.RouterServicer):
    """Decodes, lets the core decide, encodes. `members` has the record of every worker that the core knows.

    `changed` is set by whoever tells the core something that may make room for a request that waits. Placements hold
    the `gate` of news, unless somebody waits for them.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        members: Mapping[str, Member],
        history: History,
        changed: asyncio.Event,
        assume: Assume | None = None,
        peers: Peers | None = None,
        gate: NewsGate | None = None,
    ) -> None:
        self._dispatcher = dispatcher
        self._core = dispatcher.core
        self._members = members
        self._history = history
        self._changed = changed
        self._assume = assume
        self._peers = peers
        self._gate = gate or NewsGate()
        self._explainer = Explainer(history, {name: load_policy(name) for name in shipped_policies()})
        self._numbers = itertools.count(1)
        self._streams: dict[str, _RouteStream] = {}
        """By owner."""
        self._asked: dict[int, tuple[Query, router_pb2.Query]] = {}
        """Queries without a final answer, by the identity of what the core was asked."""
        self._has_queued = asyncio.Event()
        self._requests = RequestLog()
        _in_flight.set_function(lambda: self._core.requests_in_flight)

    async def Route(
        self, request_iterator: AsyncIterator[router_pb2.RouteRequest], context: Any
    ) -> AsyncIterator[router_pb2.RouteResponse]:
        answers = Outbox[router_pb2.RouteResponse]()
        stream = self.begin(answers.put)

        async def read() -> None:
            async for request in request_iterator:
                stream.take(request)
                await answers.taken()

        reading = asyncio.create_task(read(), name="queries of a gateway")
        reading.add_done_callback(lambda _: answers.complete())
        try:
            async for batch in answers.batches():
                for response in batch:
                    yield response
            await reading
        finally:
            reading.cancel()
            stream.close()

    def begin(self, send: _Send) -> "_RouteStream":
        """Begin a Route stream whose answers go to `send`."""
        owner = str(next(self._numbers))
        _gateways.inc()
        hear = partial(self._hear, owner)
        stream = self._streams[owner] = _RouteStream(send, hear, partial(self._forget, owner))
        return stream

    async def Explain(self, request: router_pb2.ExplainRequest, context: Any) -> router_pb2.ExplainResponse:
        return self._explainer.explain(request, time.monotonic())

    async def GetStats(self, request: router_pb2.RouterStatsRequest, context: Any) -> router_pb2.RouterStats:
        return stats_of(self._dispatcher, time.monotonic())

    async def Requests(self, request: router_pb2.RequestsRequest, context: Any) -> AsyncIterator[Any]:
        async for news in self._requests.stream(request):
            yield news

    async def run(self) -> None:
        """Answer queries that wait, as room is made for them, until cancelled."""
        dispatcher = self._dispatcher
        while True:
            await self._has_queued.wait()
            while (wake_s := dispatcher.next_wake_s(time.monotonic())) is not None:
                decision_metrics.measure_queue(dispatcher.by_band())
                try:
                    async with asyncio.timeout(max(wake_s - time.monotonic(), 0.0)):
                        await self._changed.wait()
                except TimeoutError:
                    pass
                self._changed.clear()
                for outcome in dispatcher.drain(time.monotonic()):
                    self._deliver(outcome)
            decision_metrics.measure_queue(dispatcher.by_band())
            self._has_queued.clear()

    def _hear(self, owner: str, request: router_pb2.RouteRequest) -> None:
        # Progress first: a request that is placed again has ended before.
        for progress in request.progress:
            self._note(owner, progress)
        for query in request.queries:
            self._submit(owner, query)
        if request.queries and not len(self._dispatcher):
            self._gate.hold()
        else:
            self._gate.open()

    def _note(self, owner: str, progress: router_pb2.Progress) -> None:
        self._changed.set()
        self._requests.progressed(owner, progress)
        if progress.kind == router_pb2.Progress.KIND_FIRST_TOKEN:
            self._core.first_token(owner, progress.request_id, progress.cached_tokens, answered_of(progress))
            at_s = time.monotonic() - progress.age_s
            self._history.first_token(owner, progress.request_id, at_s, progress.cached_tokens)
        elif progress.kind == router_pb2.Progress.KIND_FINISHED:
            waiting = self._dispatcher.finish(owner, progress.request_id)
            if waiting is not None:
                del self._asked[id(waiting)]
                return
        self._tell_peers(owner, progress.request_id, progress.kind)

    def _forget(self, owner: str) -> None:
        _gateways.dec()
        del self._streams[owner]
        self._requests.forget(owner)
        self._asked = {key: one for key, one in self._asked.items() if one[0].owner != owner}
        for request_id in self._dispatcher.forget(owner):
            self._tell_peers(owner, request_id, router_pb2.Progress.KIND_FINISHED)
        self._changed.set()

    def _tell_peers(self, owner: str, request_id: str, kind: "router_pb2.Progress.Kind.ValueType") -> None:
        if self._peers is not None:
            self._peers.progressed(owner, request_id, kind)

    def _submit(self, owner: str, query: router_pb2.Query) -> None:
        asked = query_of(query, owner)
        self._requests.arrived(owner, query)
        self._asked[id(asked)] = asked, query
        started_s = time.perf_counter()
        outcomes = self._dispatcher.submit(asked, time.monotonic())
        decision_metrics.DECISION_S.observe(time.perf_counter() - started_s)
        for outcome in outcomes:
            self._deliver(outcome)

    def _deliver(self, outcome: Outcome) -> None:
        """Answer a query, and take down what the answer was."""
        asked = outcome.query
        if outcome.is_final:
            _, query = self._asked.pop(id(asked))
            decision_metrics.count(outcome)
            self._note_answer(outcome, query)
        else:
            _, query = self._asked[id(asked)]
            self._has_queued.set()
            self._changed.set()
        if is_tracing():
            with span("route", traceparent=query.traceparent, kind=SpanKind.SERVER) as open_span:
                facts = {"request": asked.request_id, "reason": outcome.reason, "waited_s": outcome.waited_s}
                open_span.set_attributes(facts)
        placement = placement_of(query.query_id, outcome.answer, self._members, omit_reason=query.omit_reason)
        if outcome.waited_s and isinstance(outcome.answer, Placed) and not query.omit_reason:
            placement.assigned.reason = outcome.reason
        self._streams[asked.owner].put(placement)

    def _note_answer(self, outcome: Outcome, query: router_pb2.Query) -> None:
        """Tell whoever wants to know of final answers."""
        asked, answer = outcome.query, outcome.answer
        assert isinstance(answer, Placed | Rejected)
        self._history.add(asked, answer, time.monotonic())
        if isinstance(answer, Rejected):
            self._requests.refused(asked.owner, asked.request_id)
            return
        self._requests.placed(asked.owner, asked.request_id, outcome.waited_s)
        if self._assume is not None:
            for worker_id in filter(None, (answer.chosen.decode_id, answer.chosen.prefill_id)):
                self._assume(worker_id, query.sequence_hashes)
        if self._peers is not None:
            self._peers.placed(answer)


class _RouteStream:
    """One gateway's stream; placements that become known together are sent in one message."""

    def __init__(
        self, send: _Send, hear: Callable[[router_pb2.RouteRequest], None], forget: Callable[[], None]
    ) -> None:
        self._send, self._hear, self._forget = send, hear, forget
        self._ready: list[router_pb2.Placement] = []
        self._is_sending = False
        """Whether somebody is about to send what is ready."""

    def take(self, request: router_pb2.RouteRequest) -> None:
        self._is_sending = True
        try:
            self._hear(request)
        finally:
            self._flush()

    def close(self) -> None:
        self._ready.clear()
        self._forget()

    def put(self, placement: router_pb2.Placement) -> None:
        self._ready.append(placement)
        if not self._is_sending:
            self._is_sending = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._is_sending = False
        if self._ready:
            ready, self._ready = self._ready, []
            self._send(router_pb2.RouteResponse(placements=ready))
