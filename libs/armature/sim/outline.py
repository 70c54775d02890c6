"""A replay in outline, many times as fast as `simulation.py`: for sizing fleets, not for judging placement.

Prompts go to whoever is predicted to have them done first, less what its cache holds of them; every step computes
waiting prompts in order, up to the limit of tokens, and a token of each answer, and lasts as long as the performance
model says. Left out: the router's queue and its other terms, blocks of answers, memory as a limit, hand-offs and lower
tiers. Who is ready is up to the same `Elastic`. How near it comes is held by a test.
"""

import heapq
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

from armature.performance.step import PerformanceModel, StepShape
from armature.routing.worker import Worker
from armature.scheduling.request import EngineLoad
from armature.sim.arrivals import OpenLoop
from armature.sim.cell import CellShape
from armature.sim.clock import Clock
from armature.sim.elastic import Elastic, Scaling
from armature.sim.observed import ObservedRecord
from armature.sim.trace import Trace, TraceRequest

_WORK = 0.28
"""Weight of a prompt's own length, as the usual placement has it: what it takes from those who come after."""
_HARM = 0.025
"""Likewise of what a prompt costs each answer beside it."""
_CROWD_S = 1e-4
"""What an answer more takes from each other step."""


@dataclass(slots=True, eq=False)
class _Prompt:
    position: int
    request: TraceRequest
    cached_tokens: int
    new_tokens: int
    """To be computed yet."""
    done_tokens: int
    takes_s: float
    """Alone on a worker, what is left."""


class OutlineSite:
    """A place for a worker, and its engine at the same time."""

    def __init__(
        self, worker: Worker, clock: Clock, performance: PerformanceModel, record: Callable[[], ObservedRecord]
    ) -> None:
        self.worker = worker
        self.is_up = True
        self.free_s = 0.0
        """When its prompts will be done, as far as is known."""
        self.num_running = 0
        self._clock, self._performance, self._record = clock, performance, record
        self.cache: OrderedDict[int, None] = OrderedDict()
        """Contents of blocks, the one that was used longest ago first."""
        self._prompts: deque[_Prompt] = deque()
        self._ends: list[tuple[int, int, TraceRequest]] = []
        """Of answers: the step after which they are complete."""
        self._step = 0
        self._context_tokens = 0
        self._begun_s, self._each_s, self._num_steps = 0.0, 0.0, 0
        """What is being computed: equal steps; 0: nothing."""
        self._chunks: list[tuple[_Prompt, int]] = []
        self._plans = 0
        """Ends of earlier plans are void."""

    @property
    def engine(self) -> "OutlineSite":
        return self

    @property
    def has_work(self) -> bool:
        return bool(self._prompts or self.num_running)

    @property
    def load(self) -> EngineLoad:
        size, total = self.worker.block_size, self.worker.num_blocks
        waiting = sum([prompt.new_tokens for prompt in self._prompts])
        free = max(total - self._context_tokens // size, 0)
        return EngineLoad(self.num_running, len(self._prompts), waiting, free, total)

    def cached_tokens(self, request: TraceRequest) -> int:
        """The prompt's beginning that needs no computing; its last token does."""
        contents, cache = request.contents, self.cache
        usable = (request.prompt_tokens - 1) // self.worker.block_size
        if not usable or contents[0] not in cache:
            return 0
        low, high = 1, usable
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if contents[middle - 1] in cache else (low, middle - 1)
        return low * self.worker.block_size

    def submit(self, position: int, request: TraceRequest, cached_tokens: int, takes_s: float) -> None:
        """A request is placed here."""
        cache, now_s = self.cache, self._clock.now_s
        for content in reversed(request.contents):  # so that beginnings, which more share, go last
            cache[content] = None
            cache.move_to_end(content)
        while len(cache) > self.worker.num_blocks:
            cache.popitem(last=False)
        new_tokens = request.prompt_tokens - cached_tokens
        self._prompts.append(_Prompt(position, request, cached_tokens, new_tokens, cached_tokens, takes_s))
        self.free_s = max(self.free_s, now_s) + takes_s
        if not self._num_steps:
            self._begin(now_s)
        elif not self._chunks and self._num_steps > 1:
            # Answers alone: the prompt is let in after the step that is computed now.
            kept = min(int((now_s - self._begun_s) / self._each_s) + 1, self._num_steps)
            self._plan(self._begun_s, self._each_s, kept)

    def leave(self) -> None:
        """Empty, and what was cached is lost."""
        self.is_up = False
        self.cache.clear()

    def _plan(self, begun_s: float, each_s: float, num_steps: int) -> None:
        self._begun_s, self._each_s, self._num_steps = begun_s, each_s, num_steps
        self._plans += 1
        plan = self._plans
        self._clock.at(begun_s + each_s * num_steps, lambda now_s: self._end(now_s) if plan == self._plans else None)

    def _begin(self, now_s: float) -> None:
        running, context, self._chunks = self.num_running, self._context_tokens, []
        if not self.has_work:
            self._num_steps = 0
        elif not self._prompts:
            num_steps = max(self._ends[0][0] - self._step, 1)
            took_s = self._performance.stretch_s(running, context, num_steps)
            self._plan(now_s, took_s / num_steps, num_steps)
        else:
            shape = self._admit(self.worker.max_num_batched_tokens - running)
            step_s = self._performance.step_s(shape)
            self.free_s = now_s + step_s + sum([prompt.takes_s for prompt in self._prompts])
            self._plan(now_s, step_s, 1)

    def _admit(self, budget: int) -> StepShape:
        """Chunks of waiting prompts, in order."""
        tokens, pairs, room = 0, 0.0, self.worker.max_num_seqs - self.num_running
        for prompt in self._prompts:
            if budget <= 0 or len(self._chunks) >= room:
                break
            count = min(prompt.new_tokens, budget)
            pairs += count * (prompt.done_tokens + count / 2)
            prompt.takes_s -= prompt.takes_s * count / prompt.new_tokens
            tokens, budget = tokens + count, budget - count
            self._chunks.append((prompt, count))
        return StepShape(self.num_running, self._context_tokens, tokens, pairs)

    def _end(self, now_s: float) -> None:
        self._step += self._num_steps
        self._context_tokens += self.num_running * self._num_steps
        while self._ends and self._ends[0][0] <= self._step:
            _, position, request = heapq.heappop(self._ends)
            self.num_running -= 1
            self._context_tokens -= request.prompt_tokens + request.output_tokens
            self._record().finish(position, now_s, request.output_tokens)
        for prompt, count in self._chunks:
            prompt.new_tokens -= count
            prompt.done_tokens += count
            if not prompt.new_tokens:
                self._prompts.popleft()
                self._answer(prompt, now_s)
        self._begin(now_s)

    def _answer(self, prompt: _Prompt, now_s: float) -> None:
        """A prompt is computed, and with it the first token."""
        request, position = prompt.request, prompt.position
        self._record().first_token(position, now_s, prompt.cached_tokens)
        if request.output_tokens == 1:
            self._record().finish(position, now_s, 1)
            return
        heapq.heappush(self._ends, (self._step + request.output_tokens - 1, position, request))
        self.num_running += 1
        self._context_tokens += request.prompt_tokens + 1


class OutlineSimulation:
    """A trace, aggregated workers, and whoever sizes their fleet. Use it once: `run`."""

    def __init__(self, trace: Trace, cell: CellShape, scaling: Scaling) -> None:
        """Raises ValueError: the cell has something that is left out, or less room than the fleet begins with."""
        if cell.tier_shapes or cell.can_pull or cell.failures:
            raise ValueError("lower tiers, pulling and failures are left out of a replay in outline")
        self._performance, self._chunk_tokens = cell.performance, cell.worker.max_num_batched_tokens
        self._clock = clock = Clock()
        self._trace = trace
        self._sites = sites = {
            worker.worker_id: OutlineSite(worker, clock, cell.performance, lambda: self.outcomes)
            for worker in cell.workers()
        }
        self._draining: set[str] = set()
        self._ready: list[OutlineSite] = []
        self._held: list[tuple[int, TraceRequest]] = []
        """Requests that came when nobody was there."""
        self.elastic = Elastic(scaling, clock, self, sites, lambda worker_id: sites[worker_id].leave())
        self.outcomes = ObservedRecord(self.elastic.observer)

    def run(self) -> None:
        """Until every request has ended."""
        num_requests = len(self._trace.requests)
        self.elastic.begin(lambda: self.outcomes.ended >= num_requests)
        OpenLoop(self._trace, self._clock, self._accept).start()
        while self._clock.step():
            pass

    # --- what a fleet tells about its workers

    def put_worker(self, worker: Worker) -> None:
        self.describe(worker)

    def describe(self, worker: Worker) -> None:
        """A worker takes requests from now on, or no longer."""
        if worker.is_draining:
            self._draining.add(worker.worker_id)
        else:
            self._draining.discard(worker.worker_id)
        self._ready = [one for name, one in self._sites.items() if one.is_up and name not in self._draining]
        held, self._held = self._held, []
        for position, request in held:
            self._place(position, request)

    # --- requests

    def _accept(self, request: TraceRequest, now_s: float) -> None:
        self._place(self.outcomes.arrive(now_s, request.prompt_tokens), request)

    def _place(self, position: int, request: TraceRequest) -> None:
        if not self._ready:
            self._held.append((position, request))
            return
        now_s, whole_s = self._clock.now_s, self._prefill_s(request.prompt_tokens, 0)
        best, least_s, best_cached, best_takes_s = self._ready[0], float("inf"), 0, whole_s
        first = request.contents[0]
        for site in self._ready:
            cached, takes_s, running = 0, whole_s, site.num_running
            if first in site.cache and (cached := site.cached_tokens(request)):
                takes_s = self._prefill_s(request.prompt_tokens - cached, cached)
            cost_s = takes_s * (1 + _WORK + _HARM * running) + _CROWD_S * running
            if site.free_s > now_s:
                cost_s += site.free_s - now_s
            if cost_s < least_s:
                best, least_s, best_cached, best_takes_s = site, cost_s, cached, takes_s
        best.submit(position, request, best_cached, best_takes_s)

    def _prefill_s(self, new_tokens: int, cached_tokens: int) -> float:
        took_s, done = 0.0, cached_tokens
        while new_tokens > 0:
            chunk = min(new_tokens, self._chunk_tokens)
            took_s += self._performance.step_s(StepShape(0, 0, chunk, chunk * (done + chunk / 2)))
            done, new_tokens = done + chunk, new_tokens - chunk
        return took_s
