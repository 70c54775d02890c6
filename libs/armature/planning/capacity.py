"""The fewest workers that hold the targets under a demand, by replaying it on candidates: see `queueing.py`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from armature.planning.fleet import Counts, WorkerKind
from armature.planning.observer import Arrivals
from armature.planning.queueing import Jobs, Met, alone, jobs_of, meet_aggregated, meet_disaggregated, span_s
from armature.routing.checks import check_numbers

_ROOM = 0.9
"""Of KV memory, that running answers may fill: above it engines preempt."""
_REACH = 1.1
"""Times the best that any number of workers reaches: what is out of reach must not be bought with all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """What users are promised.

    Raises:
        ValueError: a number is out of its range.
    """

    ttft_s: float
    itl_s: float
    quantile: float = 0.95
    """Share of requests for which they are to hold."""

    def __post_init__(self) -> None:
        check_numbers(self, above_zero=("ttft_s", "itl_s", "quantile"))
        if self.quantile >= 1:
            raise ValueError(f"quantile is {self.quantile}; it must be below 1, such as 0.95")


class Predicted(NamedTuple):
    """What a number of workers would come to, at the targets' quantile."""

    ttft_s: float
    itl_s: float
    load: float
    """Share of the time spent on prompts, of workers that compute them."""
    kv_share: float
    """Of KV memory in use at the busiest time."""


class Aim(NamedTuple):
    """What is planned for."""

    ttft_s: float
    itl_s: float


class Correction(NamedTuple):
    """How many times as long things have lately taken as was predicted."""

    ttft: float = 1.0
    itl: float = 1.0


EXACT = Correction()


class Capacity:
    """What workers of one kind can carry within targets."""

    def __init__(self, kind: WorkerKind, targets: Targets) -> None:
        self.kind = kind
        self.targets = targets
        self._jobs: Jobs | None = None
        self._known: dict[Counts, Met] = {}
        """What those jobs would meet: neighbours are asked for again when a decision is told."""

    def predict(self, demand: "Demand", counts: Counts, correction: Correction = EXACT) -> Predicted:
        """Under that demand; without enough workers of each role nothing is met.

        Raises:
            ValueError: aggregated workers are mixed with prefill and decode workers.
        """
        if counts.aggregated and (counts.prefill or counts.decode):
            raise ValueError(f"{counts}: prediction knows either aggregated workers, or prefill and decode workers")
        if not len(demand.jobs.arrival_s):
            return Predicted(0.0, 0.0, 0.0, 0.0)
        if not counts.aggregated and not (counts.prefill and counts.decode):
            return Predicted(float("inf"), float("inf"), float("inf"), float("inf"))
        return self._predicted(self._met(demand.jobs, counts), correction)

    def holds(self, predicted: Predicted, aim: Aim | None = None) -> bool:
        """Whether what is aimed at, or else the targets, is met and memory suffices."""
        ttft_s, itl_s = aim or Aim(self.targets.ttft_s, self.targets.itl_s)
        fits = predicted.kv_share <= _ROOM and predicted.load < 1.0
        return fits and predicted.ttft_s <= ttft_s and predicted.itl_s <= itl_s

    def lacking(self, predicted: Predicted, aim: Aim) -> str:
        """In words, why what is aimed at is not met."""
        if not np.isfinite(predicted.load):
            return "a role has no worker"
        if predicted.load >= 1.0:
            return f"prompts alone are {predicted.load:.3g} times what it can compute"
        if predicted.kv_share > _ROOM:
            return f"answers would take {predicted.kv_share:.0%} of its places or KV memory"
        if predicted.ttft_s > aim.ttft_s:
            return f"TTFT {predicted.ttft_s:.3g} s, and {aim.ttft_s:.3g} s is aimed at"
        return f"ITL {predicted.itl_s * 1000:.3g} ms, and {aim.itl_s * 1000:.3g} ms is aimed at"

    def aim(self, demand: "Demand", headroom: float, correction: Correction = EXACT) -> Aim:
        """Targets times `headroom`; where no number of workers reaches that, a little above what can be reached."""
        targets = self.targets
        if not len(demand.jobs.arrival_s):
            return Aim(targets.ttft_s * headroom, targets.itl_s * headroom)
        best = self._predicted(alone(demand.jobs, self.kind), correction)
        return Aim(
            max(targets.ttft_s * headroom, best.ttft_s * _REACH), max(targets.itl_s * headroom, best.itl_s * _REACH)
        )  # fmt: skip

    def least_aggregated(
        self, demand: "Demand", most: int, *, headroom: float = 1.0, correction: Correction = EXACT, near: int = 0
    ) -> int:
        """The fewest that hold the targets, or come near to what `most` would reach; 0 if nothing is asked.

        The search begins at `near`, so that a good guess spares most of it.
        """
        if not len(demand.jobs.arrival_s):
            return 0
        aim = self.aim(demand, headroom, correction)
        return _least(
            lambda count: self.holds(self.predict(demand, Counts(count), correction), aim), most, _busy(demand), near
        )  # fmt: skip

    def least_disaggregated(
        self, demand: "Demand", most: int, *, headroom: float = 1.0, correction: Correction = EXACT
    ) -> Counts:
        """The fewest of each: prefill workers for TTFT, decode workers for ITL and memory."""
        if not len(demand.jobs.arrival_s):
            return Counts()
        aim = self.aim(demand, headroom, correction)

        def answers(num_decode: int) -> bool:
            met = self.predict(demand, Counts(0, most, num_decode), correction)
            return met.itl_s <= aim.itl_s and met.kv_share <= _ROOM

        num_decode = _least(answers, most)

        def begins(num_prefill: int) -> bool:
            met = self.predict(demand, Counts(0, num_prefill, num_decode), correction)
            return met.load < 1.0 and met.ttft_s <= aim.ttft_s

        return Counts(0, _least(begins, most, _busy(demand)), num_decode)

    def _met(self, jobs: Jobs, counts: Counts) -> Met:
        if self._jobs is not jobs:
            self._jobs = jobs
            self._known.clear()
        if counts not in self._known:
            self._known[counts] = (
                meet_aggregated(jobs, self.kind, counts.aggregated)
                if counts.aggregated
                else meet_disaggregated(jobs, self.kind, counts.prefill, counts.decode)
            )
        return self._known[counts]

    def _predicted(self, met: Met, correction: Correction) -> Predicted:
        share = self.targets.quantile
        itl_s = met.itl_s[np.isfinite(met.itl_s)]
        ttft_s, itl_s = _quantile(met.ttft_s, share) * correction.ttft, _quantile(itl_s, share) * correction.itl
        return Predicted(ttft_s, itl_s, met.load, met.kv_share)


class Demand(NamedTuple):
    """Requests as work for a kind of worker."""

    jobs: Jobs
    work: NDArray[np.float64]
    """Of each request, in seconds of a worker's time."""


def demand_of(arrivals: Arrivals, kind: WorkerKind, decode_token_s: float) -> Demand:
    """The work of arrivals; `decode_token_s` is what a token of an answer costs a worker that is well used."""
    jobs = jobs_of(arrivals, kind)
    return Demand(jobs, jobs.prefill_s + jobs.output_tokens * decode_token_s)


def faster(demand: Demand, factor: float) -> Demand:
    """The same requests at `factor` times the rate."""
    arrival_s = demand.jobs.arrival_s
    return demand._replace(jobs=demand.jobs._replace(arrival_s=arrival_s[:1] + (arrival_s - arrival_s[:1]) / factor))


def _quantile(values: NDArray[np.float64], share: float) -> float:
    """The smallest value that so large a share does not exceed; 0 of none."""
    if not len(values):
        return 0.0
    at = min(max(int(np.ceil(share * len(values))) - 1, 0), len(values) - 1)
    return float(np.partition(values, at)[at])


def _busy(demand: Demand) -> int:
    """Workers that prompts alone keep busy all the time: fewer can't be enough."""
    return int(float(demand.jobs.prefill_s.sum()) / span_s(demand.jobs))


def _least(holds: Callable[[int], bool], most: int, too_few: int = 0, near: int = 0) -> int:
    """The smallest number above `too_few` from which on it holds; `most` if it never does."""
    floor = min(max(too_few, 0), most - 1)
    low, high = floor, min(max(near, floor + 1), most)
    step = 1
    if high == most or holds(high):
        # Downwards from where it holds, in growing steps; that nobody needs more than `most` is taken for granted.
        while high - low > 1 and holds(max(high - step, floor + 1)):
            high, step = max(high - step, floor + 1), 2 * step
        low = max(high - step, floor)
    else:
        low, high = high, min(high + 1, most)
        while high < most and not holds(high):
            step *= 2
            low, high = high, min(high + step, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
