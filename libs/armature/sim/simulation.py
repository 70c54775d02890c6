"""Replays a trace on a cell of aggregated workers, from event to event.

Events are arrivals (and refused clients that come again), the ends of steps, and cache events that reach the router.
Two at the same instant happen in the order in which they were scheduled, so a run depends on its inputs only.
A client that the router refuses for overload comes again when it was told to; its wait counts, as that in the router's
queue does.
"""

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from armature.blocks.events import KvEvent, KvEventKind
from armature.blocks.hashing import BlockDigest, pack_hashes
from armature.index.packing import unpack_hashes
from armature.index.prefix_index import PrefixIndex
from armature.performance.step import PerformanceModel
from armature.routing.decision import Placed, Query, Rejected, RejectionCode
from armature.routing.queueing.dispatcher import Dispatcher
from armature.routing.queueing.outcome import Outcome as Decided
from armature.routing.router import RoutingCore
from armature.routing.worker import Load, Role, Speeds, Worker
from armature.scheduling.request import EngineLoad, FinishReason, Request, Sampling, StepOutput
from armature.sim.trace import ContentHasher, Trace, prompt_token_ids
from armature.sim.worker import SimulatedWorker, WorkerShape


@dataclass(frozen=True, slots=True, kw_only=True)
class CellShape:
    """A cell of equal workers.

    Raises:
        ValueError: there is no worker, or time would run backwards.
    """

    num_workers: int
    worker: WorkerShape
    performance: PerformanceModel
    model: str = "model"
    block_bytes: int = 1
    event_lag_s: float = 0.0
    """Between a change in a worker's cache and the router's index."""
    stretches: bool = True
    """Off: every step is planned by itself, for checking."""

    def __post_init__(self) -> None:
        if self.num_workers < 1:
            raise ValueError(f"num_workers is {self.num_workers}; it must be at least 1")
        if not 0 <= self.event_lag_s < float("inf"):
            raise ValueError(f"event_lag_s is {self.event_lag_s}; it must be at least 0")

    def workers(self) -> list[Worker]:
        """The workers as placement knows them."""
        shape, width = self.worker, len(str(self.num_workers - 1))
        return [
            Worker(
                worker_id=f"w{i:0{width}}",
                role=Role.AGGREGATED,
                model=self.model,
                block_size=shape.block_size,
                block_bytes=self.block_bytes,
                num_blocks=shape.num_blocks,
                max_num_seqs=shape.max_num_seqs,
                max_num_batched_tokens=shape.max_num_batched_tokens,
            )
            for i in range(self.num_workers)
        ]


@dataclass(slots=True)
class Outcome:
    """What became of one request; times from the trace's start."""

    arrival_s: float
    prompt_tokens: int
    worker_id: str = ""
    first_token_s: float = -1.0
    finish_s: float = -1.0
    output_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens that the worker found in its cache."""
    refusals: int = 0
    """How often the router sent it away to come again."""
    error: str = ""
    """Why it was not served at all."""


@dataclass(frozen=True, slots=True)
class WorkerOutcome:
    """What one worker has done."""

    worker_id: str
    requests: int
    steps: int
    busy_s: float
    preemptions: int


@dataclass(frozen=True, slots=True)
class Run:
    """What a simulation has seen."""

    outcomes: Sequence[Outcome]
    """In the trace's order."""
    workers: Sequence[WorkerOutcome]


@dataclass(slots=True)
class _Site:
    """A worker and the time at which it was last planned for; other wake-ups are void."""

    worker_id: str
    engine: SimulatedWorker
    wakes_s: float = -1.0
    requests: int = 0


@dataclass(slots=True)
class _Clock:
    """Things to do, earliest first, equals in the order of entering."""

    heap: list[tuple[float, int, Callable[[float], None]]] = field(
        default_factory=list[tuple[float, int, Callable[[float], None]]]
    )
    entered: int = 0

    def at(self, when_s: float, do: Callable[[float], None]) -> None:
        heapq.heappush(self.heap, (when_s, self.entered, do))
        self.entered += 1


class Simulation:
    """One trace, one cell, one router. Use it once: `run`."""

    def __init__(self, trace: Trace, cell: CellShape, router: RoutingCore) -> None:
        if trace.block_size != cell.worker.block_size:
            raise ValueError(f"the trace has blocks of {trace.block_size} tokens, workers {cell.worker.block_size}")
        self._trace = trace
        self._cell = cell
        self._router = router
        self._dispatcher = Dispatcher(router)
        self._drains_s = math.inf
        """When those that wait are looked after next."""
        self._hasher = ContentHasher(trace.block_size)
        self._root = self._hasher.root(cell.model)
        self._clock = _Clock()
        workers = cell.workers()
        for worker in workers:
            router.put_worker(worker)
        self._sites = {
            worker.worker_id: _Site(
                worker.worker_id,
                SimulatedWorker(cell.worker, self._hasher, cell.performance, stretches=cell.stretches),
            )
            for worker in workers
        }
        self.outcomes = [Outcome(one.arrival_s, one.prompt_tokens) for one in trace.requests]
        # Numbers that no block of the trace has, one for each answer.
        self._first_answer = 1 + max([max(one.contents) for one in trace.requests], default=0)
        self._ended = 0

    @property
    def engines(self) -> list[SimulatedWorker]:
        return [site.engine for site in self._sites.values()]

    def run(self, on_progress: Callable[[int], None] | None = None) -> Run:
        """Until every request has ended; `on_progress` hears how many have, now and then."""
        self._arrive(0)
        heap, told = self._clock.heap, 0
        while heap:
            now_s, _, do = heapq.heappop(heap)
            do(now_s)
            if on_progress and self._ended >= told + 50:
                told = self._ended
                on_progress(told)
        return Run(self.outcomes, [self._outcome(site) for site in self._sites.values()])

    def _outcome(self, site: _Site) -> WorkerOutcome:
        engine = site.engine
        return WorkerOutcome(site.worker_id, site.requests, engine.steps, engine.busy_s, engine.preemptions)

    # --- requests

    def _arrive(self, position: int) -> None:
        """Expect a request of the trace; when it is there, the next one."""
        if position == len(self._trace.requests):
            return

        def do(now_s: float) -> None:
            self._arrive(position + 1)
            self._submit(position, self._query(position), now_s)

        self._clock.at(self._trace.requests[position].arrival_s, do)

    def _query(self, position: int) -> Query:
        tokens = prompt_token_ids(self._trace.requests[position], self._trace.block_size)
        hashes = _hashes(self._hasher.extend(self._root, tokens))
        return Query(str(position), self._cell.model, len(tokens), hashes)

    def _submit(self, position: int, query: Query, now_s: float) -> None:
        for one in self._dispatcher.submit(query, now_s):
            self._settle(one, now_s)
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
        for one in self._dispatcher.drain(now_s):
            self._settle(one, now_s)
        self._expect_drain(self._dispatcher.next_wake_s(now_s))

    def _settle(self, decided: Decided, now_s: float) -> None:
        query, answer = decided.query, decided.answer
        position = int(query.request_id)
        outcome = self.outcomes[position]
        if isinstance(answer, Rejected):
            if answer.code is RejectionCode.OVERLOADED:
                outcome.refusals += 1
                again_s = now_s + max(answer.retry_after_s, 0.001)
                self._clock.at(again_s, lambda at_s: self._submit(position, query, at_s))
            else:
                outcome.error, outcome.finish_s = answer.reason, now_s
                self._ended += 1
        elif isinstance(answer, Placed):
            self._start(position, answer, now_s)

    def _start(self, position: int, answer: Placed, now_s: float) -> None:
        outcome = self.outcomes[position]
        outcome.worker_id = answer.chosen.decode_id
        site = self._sites[outcome.worker_id]
        site.requests += 1
        site.engine.submit(self._request(position))
        if site.engine.is_computing:
            self._wake(site, site.engine.cut(now_s))
        else:
            self._continue(site, now_s)

    def _request(self, position: int) -> Request:
        one, block_size = self._trace.requests[position], self._trace.block_size
        answer = self._first_answer + position
        tokens = prompt_token_ids(one, block_size)
        sampling = Sampling(seed=answer, ignore_eos=True)
        return Request(str(position), tokens, one.prompt_tokens, one.output_tokens, self._root, sampling)

    # --- workers

    def _continue(self, site: _Site, now_s: float) -> None:
        ends_s = site.engine.begin(now_s)
        if ends_s is None:
            site.wakes_s = -1.0
            self._hear(site, site.engine.take(), now_s)
        else:
            self._wake(site, ends_s)

    def _wake(self, site: _Site, when_s: float) -> None:
        if site.wakes_s == when_s:
            return
        site.wakes_s = when_s

        def do(now_s: float) -> None:
            if site.wakes_s == now_s and site.engine.is_computing:
                self._hear(site, site.engine.end(), now_s)
                self._continue(site, now_s)

        self._clock.at(when_s, do)

    def _hear(self, site: _Site, output: StepOutput, now_s: float) -> None:
        router = self._router
        for told in output.tokens:
            outcome = self.outcomes[int(told.request_id)]
            if told.finish_reason is FinishReason.ERROR:
                outcome.error = told.error
            elif outcome.first_token_s < 0:
                outcome.first_token_s, outcome.cached_tokens = now_s, told.cached_tokens
                router.first_token("", told.request_id, told.cached_tokens)
            if told.finish_reason is not None:
                outcome.finish_s = now_s
                outcome.output_tokens = told.output_index + len(told.token_ids)
                self._ended += 1
                router.finish("", told.request_id)
        if output.kv_events:
            self._tell(router.index, site.worker_id, output.kv_events, now_s)
        router.report(site.worker_id, _load_of(output.load), now_s)
        if len(self._dispatcher):
            self._expect_drain(now_s)

    def _tell(self, index: PrefixIndex, worker_id: str, events: Sequence[KvEvent], now_s: float) -> None:
        if not self._cell.event_lag_s:
            _apply(index, worker_id, events)
        else:
            self._clock.at(now_s + self._cell.event_lag_s, lambda _: _apply(index, worker_id, events))


def _apply(index: PrefixIndex, worker_id: str, events: Sequence[KvEvent]) -> None:
    for event in events:
        if event.kind is KvEventKind.STORED:
            index.store(worker_id, _hashes(event.digests))
        elif event.kind is KvEventKind.REMOVED:
            index.remove(worker_id, _hashes(event.digests))
        else:
            index.clear(worker_id)


def _hashes(digests: Sequence[BlockDigest]) -> tuple[int, ...]:
    return unpack_hashes(pack_hashes(digests))


def _load_of(load: EngineLoad) -> Load:
    speeds = Speeds(load.prefill_tokens_per_s, load.decode_step_s)
    left = (load.running_seqs, load.waiting_seqs, load.waiting_prefill_tokens, load.free_blocks)
    return Load(*left, speeds, load.step_costs)
