"""Runs one trace under several ways to size a fleet, the planner's and simpler ones, on equal cells."""

import random
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from armature.planning.capacity import Capacity
from armature.planning.decision import Decision, Plans
from armature.planning.fleet import Counts, WorkerKind
from armature.planning.observer import Arrivals
from armature.planning.oracle import foresighted
from armature.planning.planner import Planner
from armature.planning.policy import PlannerPolicy
from armature.planning.rivals import Means, MeansPolicy, Schedule, Threshold, ThresholdPolicy
from armature.routing.policy import Policy
from armature.routing.router import RoutingCore
from armature.sim.attainment import Sizing, sizing_of
from armature.sim.cell import CellShape
from armature.sim.elastic import Level, Scaling
from armature.sim.outline import OutlineSimulation
from armature.sim.record import Record
from armature.sim.simulation import Simulation
from armature.sim.trace import Trace

RIVALS = ("static", "threshold", "means", "foresight")
ATTAINED = 0.99
"""Share of windows that a fixed fleet and foresight are given workers for."""
_MARGINS = (1.5, 1.2, 1.1, 1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)
"""Shares of the targets that foresight plans with."""
_SHARES = (0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
"""Of the workers that it takes at the first margin, where that is more than enough."""
_FORESIGHTS = (*((_MARGINS[0], share) for share in _SHARES), *((margin, 1.0) for margin in _MARGINS))
"""Leanest first: the leanest that attains is searched by halves."""


class Sized(NamedTuple):
    """One way's run."""

    sizing: Sizing
    course: Sequence[Level]
    decisions: Sequence[Decision]
    record: Record


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What every way has to cope with."""

    trace: Trace
    room: CellShape
    """As many workers as there may be."""
    kind: WorkerKind
    policy: PlannerPolicy
    placement: Policy
    start: Counts
    """Ready from the beginning; nobody: as many as a fixed fleet has."""
    start_up_s: float
    seed: int
    tell: Callable[[str], None]
    is_outline: bool = False
    """Replayed in outline, which takes a small part of the time."""
    warm_up_s: float = 0.0
    """At the beginning, of which nothing is told: planners have learned little yet."""

    def run(self, rivals: Sequence[str]) -> dict[str, Sized]:
        """The planner's run, and those of others; the planner begins with the fixed fleet if no start is given.

        Raises:
            ValueError: a rival does not know prefill and decode workers.
        """
        is_aggregated = self.policy.mode == "aggregated"
        if self.is_outline and not is_aggregated:
            raise ValueError("--outline knows aggregated workers only; leave it out with mode disaggregated")
        last_s = max([one.arrival_s for one in self.trace.requests])
        if not 0 <= self.warm_up_s <= max(last_s - self.policy.window_s, 0):
            raise ValueError(f"--warm-up-s is {self.warm_up_s:g}; of {last_s:.0f} s it must leave a window")
        if not is_aggregated and (rivals or not self.start.total):
            raise ValueError("--against compares aggregated workers only; with mode disaggregated say --against '' "
                             "and begin with --prefill and --decode")  # fmt: skip
        fixed = self._fixed() if rivals or not self.start.total else None
        start = self.start if self.start.total else Counts(fixed.sizing.most_workers if fixed else 1)
        results = {self.policy.name: self._simulate("planner", Planner(self.policy, self.kind), start)}
        for name in rivals:
            assert fixed is not None
            if name == "static":
                results[name] = fixed
            elif name == "foresight":
                results[name] = self._foresight(fixed)
            else:
                results[name] = self._simulate(name, self._rival(name, fixed), start)
        return results

    def _rival(self, name: str, fixed: Sized) -> Plans:
        limits = self.policy.limits
        if name == "means":
            policy = MeansPolicy(min_workers=max(limits.min_workers, 1), max_workers=limits.max_workers)
            return Means(policy, self.policy.targets, self.kind)
        # What a fixed fleet that is just large enough has at its busiest, less the usual safety.
        in_flight = 0.8 * _most_in_flight(fixed.record) / fixed.sizing.most_workers
        return Threshold(ThresholdPolicy(
            in_flight=max(in_flight, 0.5), min_workers=max(limits.min_workers, 1), max_workers=limits.max_workers
        ))  # fmt: skip

    def _fixed(self) -> Sized:
        """A fixed fleet for the busiest window, made larger until it attains or there may be no more."""
        capacity = Capacity(self.kind, self.policy.targets)
        asked = _arrivals_of_trace(self.trace)
        window_s, most = self.policy.window_s, self.policy.limits.max_workers
        count = max(foresighted(asked, capacity, slot_s=window_s, start_up_s=0.0, headroom=0.9, most=most).peak, 1)
        step = max(count // 12, 1)
        best = self._simulate("static", Schedule([(0.0, Counts(count))]), Counts(count))
        while best.sizing.attained < ATTAINED and count < most:
            count = min(count + step, most)
            best = self._simulate("static", Schedule([(0.0, Counts(count))]), Counts(count))
        return best

    def _foresight(self, fixed: Sized) -> Sized:
        """The leanest schedule of somebody who knows every request, that attains; or the one that attains most."""
        asked, capacity = _arrivals_of_record(fixed.record), Capacity(self.kind, self.policy.targets)
        tried: dict[tuple[float, float], Sized] = {}

        def attains(lean: tuple[float, float]) -> bool:
            schedule = foresighted(
                asked, capacity, slot_s=self.policy.window_s, start_up_s=self.start_up_s, headroom=lean[0],
                share=lean[1], most=self.policy.limits.max_workers,
            )  # fmt: skip
            tried[lean] = self._simulate("foresight", schedule, schedule.first)
            return tried[lean].sizing.attained >= ATTAINED

        found = bisect_left(_FORESIGHTS, True, key=attains)
        if found < len(_FORESIGHTS):
            return tried[_FORESIGHTS[found]]
        return max([*tried.values(), fixed], key=lambda one: one.sizing.attained)

    def _simulate(self, name: str, planner: Plans, start: Counts) -> Sized:
        started_s = time.monotonic()
        scaling = Scaling(planner=planner, start=start, start_up_s=self.start_up_s)
        if self.is_outline:
            simulation = OutlineSimulation(self.trace, self.room, scaling)
        else:
            core = RoutingCore(self.placement, random.Random(self.seed))
            simulation = Simulation(self.trace, self.room, [core], scaling=scaling)
        simulation.run()
        elastic = simulation.elastic
        assert elastic is not None
        sizing = sizing_of(
            simulation.outcomes, elastic.course, self.policy.targets,
            window_s=self.policy.window_s, gpus=self.kind.gpus, changes=len(elastic.decisions),
            from_s=self.warm_up_s,
        )  # fmt: skip
        took_s = time.monotonic() - started_s
        self.tell(f"{name}: {sizing.attained:.1%} of windows, {sizing.gpu_hours:.2f} GPU-hours ({took_s:.0f} s)")
        return Sized(sizing, elastic.course, elastic.decisions, simulation.outcomes)


def _arrivals_of_trace(trace: Trace) -> Arrivals:
    rows = [(one.arrival_s, one.prompt_tokens, 0, one.output_tokens) for one in trace.requests]
    return Arrivals(*(np.array(column, dtype=np.float64) for column in zip(*rows, strict=True)))


def _arrivals_of_record(record: Record) -> Arrivals:
    prompt, cached, output = (
        record.counts(f"{name}_tokens").astype(np.float64) for name in ("prompt", "cached", "output")
    )
    return Arrivals(record.times("arrival_s"), prompt - cached, cached, output)


def _most_in_flight(record: Record) -> int:
    begun, ended = np.sort(record.times("arrival_s")), np.sort(record.times("finish_s"))
    return int((np.arange(1, len(begun) + 1) - np.searchsorted(ended, begun)).max(initial=1))
