"""Simpler ways to size a fleet, to compare the planner with: each by its published idea, on the same observations."""

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from armature.performance.step import StepShape
from armature.planning.capacity import Targets
from armature.planning.decision import Decision, Reason
from armature.planning.fleet import Counts, WorkerKind
from armature.planning.observer import Backlog, Seen


class Schedule:
    """Counts that were fixed before: a fleet that stays, or what somebody decided who knew the future."""

    def __init__(self, changes: Sequence[tuple[float, Counts]], interval_s: float = 5.0) -> None:
        """`changes` say from when on how many are wanted, the first one from the beginning.

        Raises:
            ValueError: there are none, or their times do not rise.
        """
        times = [at_s for at_s, _ in changes]
        if not times or times != sorted(times):
            raise ValueError("a schedule needs counts, in the order of their times")
        self._times, self._counts = times, [counts for _, counts in changes]
        self._interval_s = interval_s

    @property
    def first(self) -> Counts:
        return self._counts[0]

    @property
    def peak(self) -> int:
        return max([counts.total for counts in self._counts])

    def step(self, seen: Seen) -> Decision:
        counts = self._counts[max(bisect_right(self._times, seen.now_s) - 1, 0)]
        return _decide(seen, counts, self._interval_s, "as scheduled")


@dataclass(frozen=True, slots=True, kw_only=True)
class ThresholdPolicy:
    """As horizontal pod autoscalers do it, with their usual settings."""

    in_flight: float
    """Requests per worker that are aimed at."""
    interval_s: float = 15.0
    tolerance: float = 0.1
    down_after_s: float = 300.0
    min_workers: int = 1
    max_workers: int = 64


class Threshold:
    """As many aggregated workers as bring the requests per worker to the threshold; fewer only after a while."""

    def __init__(self, policy: ThresholdPolicy) -> None:
        self._policy = policy
        self._lately: deque[tuple[float, int]] = deque()

    def step(self, seen: Seen) -> Decision:
        policy, now = self._policy, seen.fleet.wanted.aggregated
        ready = max(seen.fleet.ready.aggregated, 1)
        ratio = seen.in_flight / ready / policy.in_flight
        wanted = now if abs(ratio - 1) <= policy.tolerance else math.ceil(ready * ratio)
        wanted = min(max(wanted, policy.min_workers), policy.max_workers)
        self._lately.append((seen.now_s, wanted))
        while self._lately[0][0] < seen.now_s - policy.down_after_s:
            self._lately.popleft()
        if wanted < now:
            wanted = min(max(count for _, count in self._lately), now)
        text = f"{seen.in_flight} requests in flight, {policy.in_flight:g} a worker are aimed at"
        return _decide(seen, Counts(aggregated=wanted), policy.interval_s, text)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeansPolicy:
    """Intervals and margins as NVIDIA Dynamo's planner has them by default."""

    throughput_s: float = 180.0
    load_s: float = 5.0
    sensitivity: float = 0.8
    """Share of the targets below which all workers must be for one to leave."""
    min_workers: int = 1
    max_workers: int = 64


class Means:
    """In the manner of Dynamo's planner for aggregated workers, after its design page.

    Every 180 s the mean rate and lengths of that time, taken to go on (its `constant` predictor), set a lower bound:
    the rate over what one engine carries within both targets. Every 5 s one worker more if all miss a target by an
    estimate from their queues, one less if none comes near; nothing while a change is under way.
    """

    def __init__(self, policy: MeansPolicy, targets: Targets, kind: WorkerKind) -> None:
        self._policy, self._targets, self._kind = policy, targets, kind
        self._floor = policy.min_workers
        self._looked_s = 0.0
        self._tokens, self._outputs = 0.0, 1.0
        self._cached_share = 0.0

    def step(self, seen: Seen) -> Decision:
        policy = self._policy
        text = "within its margins"
        if seen.now_s - self._looked_s >= policy.throughput_s:
            self._look_back(seen)
        now = seen.fleet.wanted.aggregated
        wanted = now
        is_settled = not seen.fleet.starting.total and not seen.fleet.draining
        if is_settled and seen.backlogs and self._tokens:
            estimates = [self._estimate(one) for one in seen.backlogs]
            ttfts, itls = (
                [ttft / self._targets.ttft_s for ttft, _ in estimates],
                [itl / self._targets.itl_s for _, itl in estimates],
            )
            if min(ttfts) > 1 or min(itls) > 1:
                wanted, text = now + 1, "all miss a target"
            elif max(ttfts) < policy.sensitivity and max(itls) < policy.sensitivity:
                wanted, text = now - 1, "all are far within the targets"
        if is_settled and wanted < self._floor:
            wanted, text = self._floor, f"the mean rate needs {self._floor}"
        wanted = min(max(wanted, policy.min_workers), policy.max_workers)
        return _decide(seen, Counts(aggregated=wanted), policy.load_s, text)

    def _look_back(self, seen: Seen) -> None:
        recent = seen.arrivals.since(self._looked_s)
        span_s, self._looked_s = seen.now_s - self._looked_s, seen.now_s
        if not recent.num_requests:
            self._floor = self._policy.min_workers
            return
        prompt = recent.new_tokens + recent.cached_tokens
        self._tokens, self._outputs = float(prompt.mean()), max(float(recent.output_tokens.mean()), 1.0)
        self._cached_share = float(recent.cached_tokens.sum() / prompt.sum())
        self._floor = max(math.ceil(recent.num_requests / span_s / self._engine_rps()), self._policy.min_workers)

    def _engine_rps(self) -> float:
        """The rate that one engine carries: the largest batch within both targets, by Little's law."""
        kind, targets = self._kind, self._targets
        context = self._tokens + self._outputs / 2
        new_tokens = self._tokens * (1 - self._cached_share)
        best = 0.0
        for batch in range(1, max(min(kind.max_num_seqs, int(kind.kv_tokens / context)), 1) + 1):
            chunk = min(batch * new_tokens / self._outputs, kind.max_num_batched_tokens)
            step_s = self._step_s(chunk, batch, batch * context)
            ttft_s = self._prefill_s(chunk + new_tokens, batch, batch * context)
            is_late = step_s > targets.itl_s or ttft_s > targets.ttft_s
            if batch > 1 and (is_late or batch * new_tokens / self._outputs > kind.max_num_batched_tokens - batch):
                break
            best = batch / (self._outputs * step_s)
        return max(best, 1e-6)

    def _estimate(self, backlog: Backlog) -> tuple[float, float]:
        """TTFT of a request that would come now, and ITL, on one worker."""
        new_tokens = self._tokens * (1 - self._cached_share)
        ttft_s = self._prefill_s(
            backlog.waiting_prefill_tokens + new_tokens, backlog.running_seqs, backlog.used_tokens
        )  # fmt: skip
        chunk = min(backlog.running_seqs * new_tokens / self._outputs, self._kind.max_num_batched_tokens)
        return ttft_s, self._step_s(chunk, max(backlog.running_seqs, 1), backlog.used_tokens)

    def _prefill_s(self, tokens: float, batch: float, context_tokens: float) -> float:
        chunk = self._kind.max_num_batched_tokens
        whole, rest = divmod(tokens, chunk)
        took_s = whole * self._step_s(chunk, batch, context_tokens)
        return took_s + (self._step_s(rest, batch, context_tokens) if rest else 0.0)

    def _step_s(self, prefill_tokens: float, batch: float, context_tokens: float) -> float:
        tokens = round(prefill_tokens)
        return self._kind.performance.step_s(StepShape(round(batch), round(context_tokens), tokens, tokens**2 / 2))


def _decide(seen: Seen, counts: Counts, interval_s: float, text: str) -> Decision:
    is_change = counts != seen.fleet.wanted
    return Decision(seen.now_s, counts, Reason.GIVEN, text, is_change=is_change, next_s=seen.now_s + interval_s)
