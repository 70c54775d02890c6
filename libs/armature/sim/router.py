"""One router: a routing core, and the queue before it, in simulated time."""

import math
from collections.abc import Callable

from armature.routing.decision import Placed, Query
from armature.routing.queueing.dispatcher import Dispatcher
from armature.routing.queueing.outcome import Outcome
from armature.routing.router import RoutingCore, entry_of
from armature.routing.worker import Load
from armature.sim.clock import Clock

Decided = Callable[[Outcome, float], None]
TellOthers = Callable[[Callable[[RoutingCore], None]], None]


class Router:
    """`decided` is told every final outcome; `others`, if there are any, every placement and what becomes of it."""

    def __init__(self, core: RoutingCore, clock: Clock, decided: Decided, others: TellOthers | None) -> None:
        self._core = core
        self._dispatcher = Dispatcher(core)
        self._clock = clock
        self._decided = decided
        self._others = others
        self._drains_s = math.inf
        """When those that wait are looked after next."""

    def submit(self, query: Query, now_s: float) -> None:
        """A request wants a place."""
        self._tell(self._dispatcher.submit(query, now_s), now_s)

    def first_token(self, request_id: str, cached_tokens: int) -> None:
        """A request that was placed here has its first token."""
        self._core.first_token("", request_id, cached_tokens)
        if self._others is not None:
            self._others(lambda other: other.first_token("", request_id))

    def finish(self, request_id: str) -> None:
        """A request has ended; one that was never placed here is ignored."""
        self._dispatcher.finish("", request_id)
        if self._others is not None:
            self._others(lambda other: other.finish("", request_id))

    def report(self, worker_id: str, load: Load, now_s: float) -> None:
        """A worker has told its load."""
        self._core.report(worker_id, load, now_s)
        if len(self._dispatcher):
            self._expect_drain(now_s)

    def _tell(self, outcomes: list[Outcome], now_s: float) -> None:
        for outcome in outcomes:
            query, answer = outcome.query, outcome.answer
            if isinstance(answer, Placed) and self._others is not None:
                entry = entry_of(answer.judgement)
                self._others(lambda other, q=query, e=entry: other.adopt("", q.request_id, e, q.session_id))
            if outcome.is_final:
                self._decided(outcome, now_s)
        self._expect_drain(self._dispatcher.next_wake_s(now_s))

    def _expect_drain(self, when_s: float | None) -> None:
        """Look after those that wait then, unless that happens earlier anyway."""
        if when_s is not None and when_s < self._drains_s:
            self._drains_s = when_s
            self._clock.at(when_s, self._drain)

    def _drain(self, now_s: float) -> None:
        if now_s != self._drains_s:
            return
        self._drains_s = math.inf
        self._tell(self._dispatcher.drain(now_s), now_s)
