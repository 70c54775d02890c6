"""The planner's loop: look, decide, rehearse, carry out, tell. Only the leader carries out; the others stay as wise.

A planner that stands by takes every step the leader takes, except the last: so it knows the traffic when it takes over.
What goes wrong in a step is told and tried again at the next one; the fleet stays as it is meanwhile.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from armature.connectors.connector import Connector, Observed, Order, Reach
from armature.planning.decision import Decision
from armature.planning.fleet import Counts, Fleet, WorkerKind
from armature.planning.observer import Observer, Seen
from armature.planning.planner import Planner
from armature.planning.policy import PlannerPolicy
from armature.routing.policy import Policy
from armature.runtime.pulse import Pulse
from armature.steering import metrics
from armature.steering.book import Book
from armature.steering.rehearsing import HOUR_S, Rehearsed, Scene, latest, rehearse
from armature.steering.telling import (
    fleet_to,
    judged,
    plan_to,
    rehearsal_to,
    sentence,
    targets_to,
    traffic_to,
    with_targets,
)
from armature.steering.workers import WorkerBoard
from armature.v1.common_pb2 import Member, PlannerInfo
from armature.v1.planner_pb2 import LogEntry, PlannerStatus, PlannerTargets

log = logging.getLogger(__name__)

_REPEAT_S = 300.0
"""After so long what stands in the log already is told again, if it still is so."""
_HOLD_S = 60.0
"""A plan that a rehearsal has spoken against is not rehearsed again before."""
_LOG_SHOWN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SteeringOptions:
    """How plans are carried out."""

    policy: PlannerPolicy
    is_mode_open: bool
    """Whether there are prefill and decode workers is seen, not told by the policy."""
    placement: Policy
    """Who places requests in rehearsals."""
    rehearsal_budget_s: float
    """0: nothing is rehearsed."""


class Steering:
    """One planner process."""

    def __init__(
        self,
        options: SteeringOptions,
        board: WorkerBoard,
        observer: Observer,
        connector: Connector,
        book: Book,
        is_leader: Callable[[], bool],
    ) -> None:
        self._options = options
        self._board = board
        self._observer = observer
        self._connector = connector
        self._book = book
        self._is_leader = is_leader
        self._planner: Planner | None = None
        self._mode: Literal["", "aggregated", "disaggregated"] = ""
        self._seen: Seen | None = None
        self._decision: Decision | None = None
        self._held: dict[tuple[Counts, Counts], float] = {}
        """Plans that were rehearsed and not carried out: until when they are not looked at again."""
        self._noted: dict[str, tuple[str, float]] = {}
        """By what it is about: what the log says last, and since when."""
        self._wake = asyncio.Event()
        self.status = PlannerStatus(connector=connector.name, policy=options.policy.name)
        self.stepped = Pulse()
        """Fires after every step."""

    # --- what others say

    def wake(self) -> None:
        """Take the next step now: something was set."""
        self._wake.set()

    def asked(self) -> None:
        """A request has come: where nobody is there or starts, that is for now."""
        if self._decision is not None and not self._decision.counts.total:
            self.wake()

    def came(self, member: Member, took_s: float) -> None:
        """A worker that was asked for is ready."""
        self._observer.started(took_s)
        metrics.start_up_s.observe(took_s)
        text = f"{member.id} is ready, {took_s:.1f} s after it was asked for"
        self._book.note(LogEntry(kind=LogEntry.KIND_NEWS, text=text, start_up_s=took_s))

    def lead(self, leads: bool) -> None:
        """Leadership has come or gone."""
        metrics.is_leader.set(leads)
        if not leads:
            return
        for entry in self._book.entries(limit=_LOG_SHOWN):
            if entry.start_up_s:
                self._observer.started(entry.start_up_s)
        requests = self._seen.arrivals.num_requests if self._seen else 0
        text = f"this planner leads now; it knows of {requests} requests"
        self._book.note(LogEntry(kind=LogEntry.KIND_LEADERSHIP, text=text))
        self._noted.clear()
        self.wake()

    # --- what holds now

    @property
    def policy(self) -> PlannerPolicy:
        """With what people have set."""
        policy, told = self._options.policy, self._book.targets
        return policy if told is None else with_targets(policy, told)

    @property
    def is_paused(self) -> bool:
        told = self._book.targets
        return told is not None and told.is_paused

    def targets(self) -> PlannerTargets:
        """What is promised and allowed now."""
        return targets_to(self.policy, is_paused=self.is_paused)

    def own_targets(self) -> PlannerTargets:
        """What would be if nobody had set anything."""
        return targets_to(self._options.policy, is_paused=False)

    def promise(self) -> PlannerInfo:
        """What those who have requests may count on: with a fleet that may vanish, that it comes back for them."""
        policy, card = self.policy, self._board.card
        if policy.limits.min_workers or card is None or self.is_paused or self._connector.reach is not Reach.SCALES:
            return PlannerInfo()
        start_up_s = (self._seen.start_up_s if self._seen else 0.0) or policy.start_up_s
        return PlannerInfo(wakes=card, start_up_s=start_up_s)

    async def rehearse(self, counts: Counts | None) -> Rehearsed | str:
        """The last hour on a fleet, by default the one that is wanted, and on the present one; or why that can't be."""
        if self._seen is None or self._decision is None:
            return "no step has been taken yet"
        rehearsed = await self._rehearse(counts or self._decision.counts, self._seen, self._decision, HOUR_S)
        return rehearsed or "there is nothing to compare: that is the fleet as it is, or nothing is rehearsed here"

    # --- the loop

    async def run(self) -> None:
        """Step by step, until cancelled."""
        while True:
            began_s = time.monotonic()
            try:
                await self._step()
            except Exception as error:  # the fleet must not stay without a planner since one step was odd
                log.exception("a step has failed")
                self._tell([f"the step has failed: {error}"])
            metrics.step_s.observe(time.monotonic() - began_s)
            await self._book.flush()
            await self._until(began_s + self._options.policy.interval_s)

    async def _until(self, due_s: float) -> None:
        try:
            async with asyncio.timeout(max(due_s - time.monotonic(), 0.0)):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()

    async def _step(self) -> None:
        observed = await self._connector.observe()
        metrics.count(observed.problems)
        kind, obstacles = self._board.kind, [problem.text for problem in observed.problems]
        policy = self._within_reach(self._of_mode(self.policy, observed.fleet), observed.fleet)
        if kind is None:
            obstacles.append("no worker has measured its steps yet: they do so with the first prompts")
            if not observed.is_stale and not observed.fleet.wanted.total:
                await self._begin(policy, observed.fleet)
        elif observed.is_stale:
            obstacles.append("who is there is not known at the moment: nothing is decided")
        elif policy.mode == "aggregated" and observed.fleet.wanted.total > observed.fleet.wanted.aggregated:
            obstacles.append(f"{observed.fleet.wanted}: plans with mode aggregated know no other workers")
        elif policy.mode != "aggregated" and observed.fleet.wanted.aggregated:
            obstacles.append(f"{observed.fleet.wanted}: plans with prefill and decode workers know no others")
        else:
            await self._plan(policy, kind, observed, obstacles)
            return
        self._tell(obstacles, observed.fleet)

    def _of_mode(self, policy: PlannerPolicy, fleet: Fleet) -> PlannerPolicy:
        if not self._options.is_mode_open:
            return policy
        if not fleet.wanted.total:
            # Who comes back is what has left.
            return replace(policy, mode=self._mode or policy.mode)
        return replace(policy, mode="disaggregated" if fleet.wanted.prefill or fleet.wanted.decode else "aggregated")

    def _within_reach(self, policy: PlannerPolicy, fleet: Fleet) -> PlannerPolicy:
        """Where only roles can change, there are as many workers as there are."""
        total = fleet.wanted.total
        if self._connector.reach is not Reach.FLIPS or not total:
            return policy
        return replace(policy, limits=replace(policy.limits, min_workers=total, max_workers=total, gpus=0))

    async def _begin(self, policy: PlannerPolicy, fleet: Fleet) -> None:
        """Start a first worker for requests that are held on a promise: whoever has measured one may be gone."""
        seen = self._observer.take(time.monotonic(), fleet, ())
        if not (seen.in_flight and self._is_leader() and self.promise().HasField("wakes")):
            return
        counts = Counts(1) if policy.mode == "aggregated" else Counts(0, 1, 1)
        entry = LogEntry(fleet=fleet_to(fleet, counts))
        text = f"{counts}: requests are held, and no worker has measured yet what they take"
        await self._order(entry, text, Order(counts), fleet.wanted)

    async def _plan(
        self, policy: PlannerPolicy, kind: WorkerKind, observed: Observed, obstacles: Sequence[str]
    ) -> None:
        if self._planner is None or self._mode != policy.mode:
            self._planner, self._mode = Planner(policy, kind), policy.mode
        self._planner.adopt(policy, kind)
        seen = self._observer.take(time.monotonic(), observed.fleet, self._board.backlogs())
        # Replays on candidates take a while: the streams are read meanwhile.
        decision = await asyncio.to_thread(self._planner.step, seen)
        self._seen, self._decision = seen, decision
        metrics.tell(policy, observed.fleet, seen, decision)
        self._tell(obstacles, observed.fleet)
        if self._is_leader() and (decision.is_change or any(decision.flips)):
            await self._carry_out(policy, seen, decision)
            self._tell(obstacles, observed.fleet)

    # --- carrying out

    async def _carry_out(self, policy: PlannerPolicy, seen: Seen, decision: Decision) -> None:
        entry = LogEntry(plan=plan_to(decision), fleet=fleet_to(seen.fleet, decision.counts))
        text = sentence(decision, seen.fleet, policy.targets)
        if self.is_paused:
            entry.kind, entry.text = LogEntry.KIND_HELD, f"not done, since it is paused: {text}"
            return self._note("plan", entry, "paused")
        pair = seen.fleet.wanted, decision.counts
        # Limits are people's word: they hold whatever a rehearsal says.
        is_free = seen.fleet.wanted.total <= policy.limits.max_workers
        if is_free and self._held.get(pair, 0.0) > seen.now_s:
            return None
        # By the traffic that it is made for: a plan for what has changed is not to be judged by what was before.
        rehearsed = await self._rehearse(decision.counts, seen, decision, policy.pattern_s) if is_free else None
        if rehearsed is not None:
            entry.rehearsal.CopyFrom(rehearsal_to(rehearsed))
            text = f"{text}; {judged(rehearsed)}"
        if rehearsed is not None and rehearsed.verdict is not None and rehearsed.verdict.is_worse:
            self._held = {pair: seen.now_s + _HOLD_S}
            metrics.orders.labels("held").inc()
            entry.kind, entry.text = LogEntry.KIND_HELD, f"held back, keeping is better: {text}"
            return self._note("plan", entry, "held")
        if not self._is_leader():  # a rehearsal takes time
            return None
        if self._connector.reach is Reach.TELLS:
            metrics.orders.labels("told").inc()
            entry.kind, entry.text = LogEntry.KIND_HELD, f"advice, not done: {text}"
            return self._note("plan", entry, "told")
        order = Order(decision.counts, decision.flips)
        await self._order(entry, text, order, _turned(seen.fleet.wanted, decision))
        return None

    async def _order(self, entry: LogEntry, text: str, order: Order, before: Counts) -> None:
        """Have it done and put it in the log; `before`: the fleet, with changes of role already made."""
        outcome = await self._connector.apply(order)
        metrics.count(outcome.problems)
        metrics.orders.labels("problems" if outcome.problems else "done").inc()
        if outcome.done:
            self._board.expect(before, order.counts)
        entry.kind, entry.text = LogEntry.KIND_CHANGE, text
        entry.done.extend(outcome.done)
        entry.problems.extend(problem.text for problem in outcome.problems)
        self._note("plan", entry, "" if outcome.done else "undone")

    def _note(self, about: str, entry: LogEntry, state: str) -> None:
        """Put it in the log, unless that says so already."""
        counts = entry.plan.counts
        what, now_s = f"{state} {counts} {list(entry.problems)}", time.monotonic()
        last, since_s = self._noted.get(about, ("", 0.0))
        if state and what == last and now_s - since_s < _REPEAT_S:
            return
        self._noted[about] = what, now_s
        self._book.note(entry)

    async def _rehearse(self, counts: Counts, seen: Seen, decision: Decision, span_s: float) -> Rehearsed | None:
        kind, now, budget_s = self._board.kind, seen.fleet.wanted, self._options.rehearsal_budget_s
        if not budget_s or kind is None or self._planner is None or counts == now or not (counts.total and now.total):
            return None
        policy, arrivals = self.policy, latest(seen.arrivals, seen.now_s - span_s)
        pace = self._planner.pace(arrivals, decision.demand)
        scene = Scene(
            kind, self._board.block_size, policy.targets, policy.window_s, arrivals, max(pace, 1e-3), counts, now
        )  # fmt: skip
        return await rehearse(scene, self._options.placement, budget_s)

    # --- telling

    def _tell(self, obstacles: Sequence[str], fleet: Fleet | None = None) -> None:
        """Put the status together; what there is no news of stays."""
        status, policy, now_s = self.status, self.policy, time.time()
        status.model = self._board.model
        status.targets.CopyFrom(self.targets())
        status.at_s, status.next_s = now_s, now_s + policy.interval_s
        del status.obstacles[:]
        status.obstacles.extend(obstacles)
        if fleet is not None:
            wanted = self._decision.counts if self._decision else fleet.wanted
            status.fleet.CopyFrom(fleet_to(fleet, wanted))
        if self._seen is not None and self._decision is not None:
            status.traffic.CopyFrom(traffic_to(self._seen, policy.targets.quantile))
            status.plan.CopyFrom(plan_to(self._decision))
        del status.log[:]
        status.log.extend(self._book.entries(_LOG_SHOWN))
        self.stepped.fire()


def _turned(counts: Counts, decision: Decision) -> Counts:
    """After the changes of role."""
    change = decision.flips.to_prefill - decision.flips.to_decode
    return Counts(counts.aggregated, counts.prefill + change, counts.decode - change)
