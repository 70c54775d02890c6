"""Sizes a fleet for targets on quantiles: foresees demand, replays it on candidates, changes as little as it can.

Each step: the demand of the window that has ended goes into the forecast; the highest demand until a new worker would
be ready, at a quantile, sets the rate at which the recent pattern of arrivals is replayed; the fewest workers that hold
the targets there are wanted. More workers come at once. Fewer stay only when for a while no step has wanted more.
"""

import math
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from armature.performance.step import StepShape
from armature.planning.backtest import Backtest, Forecast
from armature.planning.calibration import Calibration
from armature.planning.capacity import Capacity, Demand, Predicted, demand_of, faster
from armature.planning.changes import Wish, balanced, within
from armature.planning.decision import Alternative, Decision, Reason
from armature.planning.fleet import Counts, WorkerKind
from armature.planning.observer import Arrivals, Seen
from armature.planning.policy import PlannerPolicy
from armature.planning.queueing import span_s

_BUSY_SHARE = 0.7
"""Windows with at least so much of the busiest one's work are the pattern: quiet ones don't show what a burst is."""
_MOST_REPLAYED = 2000
"""Requests of the pattern that are replayed on candidates: more take longer and say the same."""
_ROUNDING = 1e-9
_ALIKE = 1.3
"""Times the load, up or down, within which workers are needed in proportion."""
_TYPICAL_BATCH = 32
"""Answers in a step of a worker that is well used: what a token costs is shared among them."""


class _Foreseen(NamedTuple):
    """What the next minutes ask for."""

    forecast: Forecast
    load: float
    """In workers that are busy all the time, backlog included."""
    backlog: float
    """Of that, what waits too long already."""
    demand: Demand
    """The pattern, at that load."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    at_s: float
    counts: Counts


class _Yield(NamedTuple):
    """How many workers a load was found to need."""

    at_s: float
    load: float
    workers: int


class Planner:
    """One model's fleet of workers of one kind."""

    def __init__(self, policy: PlannerPolicy, kind: WorkerKind) -> None:
        self._policy = policy
        self._kind = kind
        self._capacity = Capacity(kind, policy.targets)
        self._backtest = Backtest(policy.forecast.forecasters, policy.forecast.quantile)
        self._calibration = Calibration(self._capacity, policy.pattern_s / 2)
        self._wanted: deque[_Wanted] = deque()
        self._loads: deque[tuple[float, float, float]] = deque()
        """Ends of steps, their lengths, and the work that came in them."""
        self._yields: deque[_Yield] = deque()
        self._loads_s = 0.0
        """Time that they cover, at most a window."""
        self._asked_s = 0.0
        """When a request was last seen."""
        self._began_s = float("inf")
        """When one was first seen."""

    def adopt(self, policy: PlannerPolicy, kind: WorkerKind) -> None:
        """Go on with other targets and limits, or other workers; what was learned of demand stays."""
        self._policy, self._kind = policy, kind
        self._capacity = Capacity(kind, policy.targets)
        self._calibration.adopt(self._capacity)
        self._yields.clear()

    def pace(self, arrivals: Arrivals, load: float) -> float:
        """How many times as fast these must come for their busiest windows to be that load; 1 if there are none."""
        pattern = _busiest(self._demand(arrivals), self._policy.averaged_s)
        return load * span_s(pattern.jobs) / float(pattern.work.sum()) if len(pattern.work) and load > 0 else 1.0

    def step(self, seen: Seen) -> Decision:
        """Return what the fleet should be, why, and when to call again."""
        policy = self._policy
        if seen.num_arrivals or seen.in_flight:
            self._asked_s = seen.now_s
            self._began_s = min(self._began_s, seen.now_s)
        took_s = max(seen.now_s - seen.since_s, 1e-3)
        recent = seen.arrivals.since(seen.now_s - policy.pattern_s)
        demand = self._demand(recent)
        if self._began_s <= seen.now_s and (took_s >= policy.interval_s / 2 or not self._loads):
            # A later step out of turn sees too little to count.
            self._loads.append((seen.now_s, took_s, float(demand.work[demand.jobs.arrival_s >= seen.since_s].sum())))
            self._loads_s = min(self._loads_s + took_s, policy.window_s)
            if self._is_warm:
                self._backtest.add(self._load(seen.now_s))
        self._calibrate(seen)
        if self._began_s > seen.now_s:
            return self._tell(seen, Wish(seen.fleet.wanted, Reason.UNKNOWN, "no request has been seen yet"), None)
        if self._is_idle(seen):
            idle_s = seen.now_s - self._asked_s
            self._wanted.clear()
            return self._tell(seen, Wish(Counts(), Reason.IDLE, f"no request for {idle_s:.0f} s"), None)
        foreseen = self._foresee(seen, demand)
        wish = self._wish(seen, foreseen)
        if not len(foreseen.demand.work):
            quiet_s = seen.now_s - self._asked_s
            return self._tell(seen, wish._replace(text=f"{wish.text}; nobody has asked for {quiet_s:.0f} s"), None)
        return self._tell(seen, wish, foreseen)

    # --- what will be asked

    @property
    def _is_warm(self) -> bool:
        """Whether a whole window has been seen: parts of one would be taken for what load does."""
        return self._loads_s >= self._policy.window_s

    def _load(self, now_s: float) -> float:
        """Over the last window, in workers that are busy all the time."""
        while len(self._loads) > 1 and self._loads[0][0] <= now_s - self._policy.averaged_s:
            self._loads.popleft()
        return sum(work_s for _, _, work_s in self._loads) / sum(took_s for _, took_s, _ in self._loads)

    def _demand(self, arrivals: Arrivals) -> Demand:
        kind = self._kind
        context = float((arrivals.new_tokens + arrivals.cached_tokens).mean()) if arrivals.num_requests else 0.0
        batch = max(min(_TYPICAL_BATCH, kind.max_num_seqs, int(kind.kv_tokens / max(context, 1.0))), 1)
        step_s = kind.performance.step_s(StepShape(batch, round(batch * context)))
        return demand_of(arrivals, kind, step_s / batch)

    def _foresee(self, seen: Seen, recent: Demand) -> _Foreseen:
        policy = self._policy
        start_up_s = seen.start_up_s or policy.start_up_s
        num_windows = max(int(np.ceil((start_up_s + policy.interval_s) / policy.interval_s)), 1)
        load = self._load(seen.now_s)
        forecast = self._backtest.forecast(num_windows) if self._is_warm else Forecast(load, load, "none")
        backlog = self._backlog(seen, recent) / (start_up_s + policy.interval_s)
        load = forecast.value + backlog
        pattern = _latest(_busiest(recent, policy.averaged_s))
        if not len(pattern.work):
            return _Foreseen(forecast, load, backlog, pattern)
        usual = float(pattern.work.sum()) / span_s(pattern.jobs)
        return _Foreseen(forecast, load, backlog, faster(pattern, max(load / usual, 1e-3)))

    def _backlog(self, seen: Seen, recent: Demand) -> float:
        """Seconds of a worker's time that wait beyond what those who are ready answer within the target."""
        tokens = float(recent.jobs.context_tokens.sum() - recent.jobs.output_tokens.sum() / 2)
        if tokens <= 0:
            return 0.0
        waiting_s = seen.unanswered_tokens * float(recent.jobs.prefill_s.sum()) / tokens
        servers = seen.fleet.ready.aggregated + seen.fleet.ready.prefill
        return max(waiting_s - servers * self._policy.targets.ttft_s, 0.0)

    def _calibrate(self, seen: Seen) -> None:
        if self._calibration.add(seen):
            self._calibration.learn(self._demand(seen.arrivals.since(self._calibration.since_s)), seen.now_s)

    # --- what is wanted

    def _is_idle(self, seen: Seen) -> bool:
        policy = self._policy
        return policy.limits.min_workers == 0 and seen.now_s - self._asked_s >= policy.idle_after_s

    def _wish(self, seen: Seen, foreseen: _Foreseen) -> Wish:
        """What to change, after all that speaks against it."""
        policy, now = self._policy, seen.fleet.wanted
        least = self._steadied(seen.now_s, foreseen.load, self._least(foreseen, now.aggregated))
        if policy.limits.min_workers == 0:
            # Until it is idle, what keeps the model served stays.
            one = Counts(aggregated=1) if policy.mode == "aggregated" else Counts(0, 1, 1)
            least = Counts(*map(max, least, one))
        self._remember(seen.now_s, least)
        if not now.total and seen.in_flight:
            wish = Wish(least, Reason.WAKE, "requests are held, and there is no worker")
            return within(wish, now, policy, self._kind)
        settled = self._most_since(seen.now_s - policy.down_after_s, now)
        spare = self._most_since(seen.now_s - policy.flip_after_s, now)
        wish = balanced(now, least, settled, spare, policy.hysteresis)
        if wish.reason is Reason.DEMAND and foreseen.backlog > foreseen.forecast.value * 0.1:
            wish = wish._replace(reason=Reason.BACKLOG, text=f"{wish.text}; much waits already")
        return within(wish, now, policy, self._kind)

    def _least(self, foreseen: _Foreseen, near: int) -> Counts:
        """Of each role; `near`: aggregated workers that are likely."""
        policy = self._policy
        # Beyond the limits, too: it is to be told that they are in the way.
        most = 2 * policy.limits.most(self._kind)
        correction = self._calibration.correction
        if policy.mode == "aggregated":
            return Counts(
                self._capacity.least_aggregated(
                    foreseen.demand, most, headroom=policy.headroom, correction=correction, near=near
                )
            )  # fmt: skip
        return self._capacity.least_disaggregated(
            foreseen.demand, most, headroom=policy.headroom, correction=correction
        )  # fmt: skip

    def _steadied(self, now_s: float, load: float, least: Counts) -> Counts:
        """What such loads needed in the mean of the pattern's time: which requests are replayed is chance."""
        if not least.aggregated or load <= 0:
            return least
        self._yields.append(_Yield(now_s, load, least.aggregated))
        while self._yields[0].at_s < now_s - self._policy.pattern_s / 2:
            self._yields.popleft()
        alike = [one for one in self._yields if load / _ALIKE <= one.load <= load * _ALIKE]
        return Counts(math.ceil(load * sum([one.workers / one.load for one in alike]) / len(alike) - _ROUNDING))

    def _remember(self, now_s: float, counts: Counts) -> None:
        self._wanted.append(_Wanted(now_s, counts))
        oldest_s = now_s - max(self._policy.down_after_s, self._policy.flip_after_s)
        while self._wanted[0].at_s < oldest_s:
            self._wanted.popleft()

    def _most_since(self, from_s: float, now: Counts) -> Counts:
        """The most of each that was wanted since; what there is if nobody has looked for so long."""
        if self._began_s > from_s:
            return now
        lately = [one.counts for one in self._wanted if one.at_s >= from_s]
        return Counts(*(max(column) for column in zip(*lately, strict=True)))

    # --- what is told

    def _tell(self, seen: Seen, wish: Wish, foreseen: _Foreseen | None) -> Decision:
        correction = self._calibration.correction
        predicted = self._capacity.predict(foreseen.demand, wish.counts, correction) if foreseen else None
        return Decision(
            at_s=seen.now_s,
            counts=wish.counts,
            reason=wish.reason,
            text=wish.text,
            flips=wish.flips,
            is_change=wish.counts != seen.fleet.wanted,
            holds_requests=not seen.fleet.ready.total,
            next_s=seen.now_s + self._policy.interval_s,
            demand=foreseen.load if foreseen else 0.0,
            forecast=foreseen.forecast if foreseen else None,
            predicted=predicted,
            rejected=self._rejected(seen, wish, foreseen) if foreseen else (),
            notes={"ttft_correction": correction.ttft, "itl_correction": correction.itl},
        )

    def _rejected(self, seen: Seen, wish: Wish, foreseen: _Foreseen) -> tuple[Alternative, ...]:
        """The neighbours of what was chosen, and what there is now."""
        rejected: list[Alternative] = list(wish.rejected)
        chosen = wish.counts
        near = [_step(chosen, -1), seen.fleet.wanted]
        for counts in dict.fromkeys(near):
            if counts == chosen or counts is None or not counts.total:
                continue
            predicted = self._capacity.predict(foreseen.demand, counts, self._calibration.correction)
            rejected.append(Alternative(counts, self._why_not(counts, predicted, wish, foreseen), predicted))
        return tuple(rejected)

    def _why_not(self, counts: Counts, predicted: Predicted, wish: Wish, foreseen: _Foreseen) -> str:
        aim = self._capacity.aim(foreseen.demand, self._policy.headroom, self._calibration.correction)
        if self._capacity.holds(predicted, aim):
            fewer = counts.total < wish.counts.total
            return "would do for what is foreseen, but has not for long enough" if fewer else "is more than is needed"
        short = "leave no headroom" if self._capacity.holds(predicted) else "miss a target"
        return f"would {short}: {self._capacity.lacking(predicted, aim)}"


def _step(counts: Counts, change: int) -> Counts | None:
    """One worker less or more, of the role that has most."""
    role = max(range(3), key=lambda i: counts[i])
    changed = [count + change if i == role else count for i, count in enumerate(counts)]
    return Counts(*changed) if min(changed) >= 0 else None


def _latest(demand: Demand) -> Demand:
    """As many as are replayed."""
    return Demand(
        type(demand.jobs)(*(column[-_MOST_REPLAYED:] for column in demand.jobs)), demand.work[-_MOST_REPLAYED:]
    )


def _busiest(demand: Demand, window_s: float) -> Demand:
    """The requests of the busiest windows, laid end to end."""
    jobs, work = demand
    if not len(work):
        return demand
    windows = ((jobs.arrival_s[-1] - jobs.arrival_s) / window_s).astype(np.int64)
    sums = np.bincount(windows, weights=work)
    # Windows are counted backwards from the last request; what is kept goes on forwards in time.
    kept = np.flatnonzero(sums >= _BUSY_SHARE * sums.max())[::-1]
    place = np.full(len(sums), -1)
    place[kept] = np.arange(len(kept))
    chosen = place[windows] >= 0
    shift_s = (windows[chosen] + place[windows[chosen]]) * window_s
    moved = jobs._replace(arrival_s=jobs.arrival_s + 0.0)
    picked = type(jobs)(*(column[chosen] for column in moved))
    return Demand(picked._replace(arrival_s=picked.arrival_s + shift_s), work[chosen])
