"""What if the fleet were another one: recent requests replayed on it, and on the fleet as it is.

Prompts are known by their lengths and by how much of them was cached: that is replayed as a beginning that all have in
common.
"""

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from armature.planning.capacity import Targets
from armature.planning.fleet import Counts, WorkerKind
from armature.planning.observer import Arrivals
from armature.routing.policy import Policy
from armature.routing.router import RoutingCore
from armature.routing.snapshot import Rng
from armature.sim.attainment import windows_of
from armature.sim.cell import CellShape
from armature.sim.simulation import Simulation
from armature.sim.trace import Trace, TraceRequest
from armature.sim.worker import WorkerShape

_TOLERANCE = 0.02
"""Of windows: placement is drawn by lot, and two runs are never quite alike."""
_ENOUGH = 0.99
"""Of windows: what attains so much is good, whatever else would attain."""


class OutOfTime(Exception):  # noqa: N818 -- no error: nobody wants to wait for the answer
    """The replay took longer than its caller wanted to wait."""


class Verdict(NamedTuple):
    """Shares of windows in which all targets held."""

    attained: float
    attained_now: float

    @property
    def is_worse(self) -> bool:
        """Whether the other fleet would be worse than the present one, by more than chance, and not good either."""
        return self.attained < _ENOUGH and self.attained < self.attained_now - _TOLERANCE


@dataclass(frozen=True, slots=True)
class WhatIf:
    """What a replay needs to know besides the requests."""

    kind: WorkerKind
    block_size: int
    targets: Targets
    window_s: float
    placement: Policy
    rng: Callable[[], Rng]
    """Makes the router's generator, the same for each fleet."""
    is_over: Callable[[], bool] = lambda: False
    """Whether nobody waits any more."""

    def judge(self, arrivals: Arrivals, pace: float, counts: Counts, now: Counts) -> Verdict:
        """Replay the requests `pace` times as fast as they came.

        Raises:
            OutOfTime: `is_over` said so.
            ValueError: there are no requests, or a fleet has nobody who produces tokens.
        """
        trace = self._trace(arrivals, pace)
        return Verdict(self._attained(trace, counts), self._attained(trace, now))

    def _attained(self, trace: Trace, counts: Counts) -> float:
        kind, block_size = self.kind, self.block_size
        cell = CellShape(
            num_workers=counts.aggregated,
            num_prefill=counts.prefill,
            num_decode=counts.decode,
            worker=WorkerShape(
                block_size=block_size,
                num_blocks=max(kind.kv_tokens // block_size, 1),
                max_num_seqs=kind.max_num_seqs,
                max_num_batched_tokens=kind.max_num_batched_tokens,
            ),
            performance=kind.performance,
        )
        simulation = Simulation(trace, cell, [RoutingCore(self.placement, self.rng())])
        simulation.run(self._check)
        windows = windows_of(simulation.outcomes, self.targets, self.window_s)
        return sum(window.is_met for window in windows) / len(windows)

    def _check(self, _: int) -> None:
        if self.is_over():
            raise OutOfTime

    def _trace(self, arrivals: Arrivals, pace: float) -> Trace:
        if not arrivals.num_requests:
            raise ValueError("there are no requests to replay")
        size, requests, own = self.block_size, list[TraceRequest](), 1 << 20
        for arrival_s, new, cached, output in zip(*(column.tolist() for column in arrivals), strict=True):
            prompt_tokens = max(round(new + cached), 1)
            num_blocks = -(-prompt_tokens // size)
            num_shared = min(round(cached) // size, num_blocks)
            contents = array("I", range(1, num_shared + 1))
            contents.extend(range(own, own + num_blocks - num_shared))
            own += num_blocks - num_shared
            begins_s = (arrival_s - float(arrivals.arrival_s[0])) / pace
            requests.append(TraceRequest(begins_s, prompt_tokens, max(round(output), 1), contents))
        return Trace(requests, size)
