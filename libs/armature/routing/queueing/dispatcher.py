"""Places requests, or has them wait until they can be placed, or refuses them in time: the routing core and its queue.

Requests of a model that has no worker wait for one if a planner starts it.

Whatever changes is told to the core, and then `drain` is called; it costs next to nothing while nobody waits or nobody
can be placed. Invariant: every request that is submitted gets exactly one final outcome, unless it is finished or its
owner forgotten before.
"""

from dataclasses import replace
from typing import NamedTuple

from armature.routing import columns as at
from armature.routing.decision import Placed, Query, Rejected, RejectionCode
from armature.routing.filters import able
from armature.routing.forecast import local_ways
from armature.routing.judge import judge
from armature.routing.queueing.drain_rate import DrainRate
from armature.routing.queueing.line import Line
from armature.routing.queueing.outcome import Outcome, Queued, Shed
from armature.routing.queueing.waiting import Waiting, Work
from armature.routing.router import RoutingCore
from armature.routing.snapshot import Snapshot

_TRIES = 4
"""So many of the next ones are tried before the line waits for a change: one that fits nowhere now must not keep up
those behind it that do."""
_PAUSE_S = 0.01
"""Between two attempts. Changes come by the hundreds a second in a large cell, and most of them change nothing."""
_POLL_S = 0.1
"""Attempts without a change: room is a guess, which time alone may turn."""
_RETRY_AFTER_S = (1.0, 60.0)


class _Coming(NamedTuple):
    """What is known of a request that will have to wait."""

    work: Work
    num_computing: float
    """Workers that compute prompts; at least the one that is awaited."""
    ready_s: float
    """Until the first of them has nothing else to do."""


class Dispatcher:
    """One queue for each model, in front of one routing core."""

    def __init__(self, core: RoutingCore) -> None:
        self.core = core
        self._policy = core.policy.queue
        # What keeps a worker's line short is no reason to keep somebody away who does not stand in it.
        soft = {name: one for name, one in core.policy.filters.items() if one.is_soft}
        self._passing = replace(core.policy, filters=soft)
        self._lines: dict[str, Line] = {}
        self._waiting: dict[tuple[str, str], Waiting] = {}
        self._entered = 0

    def __len__(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    def by_band(self) -> dict[int, tuple[int, float]]:
        """Requests that wait and seconds of their work, by priority."""
        sums: dict[int, tuple[int, float]] = {}
        for line in self._lines.values():
            for priority, band in line.bands.items():
                requests, work_s = sums.get(priority, (0, 0.0))
                sums[priority] = requests + len(band), work_s + band.work_s
        return sums

    def submit(self, query: Query, now_s: float) -> list[Outcome]:
        """A request wants a place. Its own outcome, which may not be final, and those of others that it decides."""
        outcomes = self._replace(query, now_s)
        line = self._lines.get(query.model)
        if line is None or not len(line):
            answer = self._place(query, now_s)
            if answer is not None:
                return [*outcomes, Outcome(query, answer)]
        passing = self._pass_by(query, line, now_s)
        if passing is not None:
            return [*outcomes, Outcome(query, passing)]
        coming = self._coming(query, now_s)
        if isinstance(coming, Rejected):
            return [*outcomes, Outcome(query, coming)]
        if line is None:
            line = self._lines[query.model] = Line(self._policy, DrainRate(coming.num_computing, now_s))
        if line.is_full(now_s):
            # Whoever can go now goes, before anybody is refused for want of room.
            self._serve(line, query.model, now_s, outcomes)
        one = self._entry(query, coming, now_s)
        self._admit(line, one, coming.ready_s, now_s, outcomes)
        if one.is_waiting:
            self._serve(line, query.model, now_s, outcomes)
        if one.is_waiting:
            outcomes.append(Outcome(query, self._queued(line, one, now_s)))
        return outcomes

    def drain(self, now_s: float) -> list[Outcome]:
        """Place whom a change has made room for, and refuse who has waited too long."""
        outcomes: list[Outcome] = []
        if self._waiting:
            for model, line in self._lines.items():
                if len(line):
                    self._serve(line, model, now_s, outcomes)
        return outcomes

    def next_wake_s(self, now_s: float) -> float | None:
        """When to drain even if nothing changes; None: nobody waits."""
        wakes_s = [self._wakes_s(model, line, now_s) for model, line in self._lines.items() if len(line)]
        return min(wakes_s, default=None)

    def finish(self, owner: str, request_id: str) -> Query | None:
        """A request has ended, or its client has left; its query if it was still waiting. Unknown ones are ignored."""
        one = self._waiting.pop((owner, request_id), None)
        if one is None:
            self.core.finish(owner, request_id)
            return None
        self._lines[one.query.model].remove(one)
        return one.query

    def forget(self, owner: str) -> list[str]:
        """An owner is gone, and with it its requests; which of them had been placed."""
        keys = [key for key in self._waiting if key[0] == owner]
        for key in keys:
            self.finish(*key)
        return self.core.forget(owner)

    # --- coming

    def _replace(self, query: Query, now_s: float) -> list[Outcome]:
        one = self._waiting.get((query.owner, query.request_id))
        if one is None:
            return []
        self._lines[one.query.model].remove(one)
        return [self._refuse(one, Shed.REPLACED, "the same request was submitted again", 0.0, now_s)]

    def _coming(self, query: Query, now_s: float) -> _Coming | Rejected:
        """What a request asks for that can't be placed now; refused: nobody will be able to serve it."""
        start_up_s = self.core.awaited_s(query.model)
        if start_up_s is not None:
            work = Work(query.prompt_tokens / self.core.policy.assume.prefill_tokens_per_s, query.prompt_tokens)
            return _Coming(work, 1.0, start_up_s)
        snapshot = self.core.look(query, now_s)
        if isinstance(snapshot, Rejected):
            return snapshot
        work = self._work(snapshot)
        if work is None:
            return self.core.refusal(snapshot)
        busy_s = max(float(snapshot.state[at.BUSY_UNTIL_S].min()) - now_s, 0.0)
        return _Coming(work, _num_computing(snapshot), busy_s)

    def _entry(self, query: Query, coming: _Coming, now_s: float) -> Waiting:
        policy, hints, work = self._policy, query.hints, coming.work
        self._entered += 1
        one = Waiting(query, work, now_s, self._entered)
        one.band = hints.priority if policy.bands else 0
        one.tenant = query.tenant if policy.tenants else ""
        one.key = policy.order.key(hints, work, now_s)
        # Starting is not the queue's doing: it comes on top of what a queue may take.
        wait_s = policy.max_wait_s + (self.core.awaited_s(query.model) or 0.0)
        if hints.ttft_target_s:
            wait_s = min(wait_s, hints.ttft_target_s - work.seconds)
        one.expires_s = now_s + wait_s
        return one

    def _admit(self, line: Line, one: Waiting, ready_s: float, now_s: float, outcomes: list[Outcome]) -> None:
        """Let a newcomer wait, if there is room or others have to go for it; else refuse it.

        The first worker has nothing before it after `ready_s`.
        """
        late_s = self._late_s(line, one, ready_s, now_s)
        if late_s > 0:
            target_s = one.query.hints.ttft_target_s
            text = f"the first token would come about {late_s:.1f} s after the {target_s:g} s in which it is of use"
            outcomes.append(self._refuse(one, Shed.TOO_LATE, text, late_s, now_s))
            return
        freed_s = 0.0
        while line.is_full(now_s) and freed_s < one.work.seconds:
            victim = line.victim(one)
            if victim is not None:
                freed_s += victim.work.seconds
                line.remove(victim)
                text = f"made room for a request of priority {one.band} in a full queue: {_fill(line, now_s)}"
                outcomes.append(self._refuse(victim, Shed.PUSHED_OUT, text, self._wait_s(line, victim, now_s), now_s))
            elif freed_s:
                break
            else:
                text = f"the queue is full: {_fill(line, now_s)}"
                outcomes.append(self._refuse(one, Shed.FULL, text, self._wait_s(line, one, now_s), now_s))
                return
        line.add(one, now_s)
        self._waiting[one.query.owner, one.query.request_id] = one

    def _late_s(self, line: Line, one: Waiting, ready_s: float, now_s: float) -> float:
        """How much later than of use its first token would come; not above 0: in time, as far as can be seen."""
        target_s = one.query.hints.ttft_target_s
        if not target_s:
            return 0.0
        return ready_s + line.wait_s(one, now_s) + one.work.seconds - target_s

    def _wait_s(self, line: Line, one: Waiting, now_s: float) -> float:
        """About how long it would wait, a first worker's start included."""
        return line.wait_s(one, now_s) + (self.core.awaited_s(one.query.model) or 0.0)

    def _work(self, snapshot: Snapshot) -> Work | None:
        """What computing the prompt takes at least; None: nobody is able to serve it, however long it waits."""
        (slots,) = able(snapshot)[: snapshot.roster.num_decoders].nonzero()
        if not len(slots):
            return None
        ways = local_ways(snapshot, slots, self.core.policy.forecast)
        assert ways.prefill_s is not None
        least = int(ways.prefill_s.argmin())
        return Work(float(ways.prefill_s[least]), int(ways.tokens[least]))

    def _queued(self, line: Line, one: Waiting, now_s: float) -> Queued:
        wait_s = self._wait_s(line, one, now_s)
        why = _fill(line, now_s) if self.core.awaited_s(one.query.model) is None else "a worker is started for them"
        reason = f"waits with {len(line) - 1} others for about {wait_s:.1f} s: {why}"
        return Queued(wait_s, one.expires_s - now_s, reason)

    # --- going

    def _serve(self, line: Line, model: str, now_s: float, outcomes: list[Outcome]) -> None:
        self._expire(line, now_s, outcomes)
        if self.core.awaited_s(model) is not None:
            # That nobody is placed says nothing of how fast the queue will drain.
            line.rate.resume(now_s)
            line.tried_s = now_s
            return
        if self._opens_s(model, now_s) > now_s:
            return
        if now_s < line.tried_s + _PAUSE_S:
            line.is_due = True
            return
        line.tried_s, line.is_due = now_s, False
        aside: list[Waiting] = []
        owes = True
        while len(aside) < _TRIES and self._opens_s(model, now_s) <= now_s:
            owed = line.owed() if owes else None
            one = owed or line.pop()
            if one is None:
                break
            answer = self._place(one.query, now_s, is_owed=owed is not None)
            if answer is not None:
                self._settle(line, one, answer, now_s, is_owed=owed is not None)
                outcomes.append(Outcome(one.query, answer, now_s - one.arrival_s))
            elif owed is not None:
                line.is_not_taken(owed)
                owes = False
            else:
                aside.append(one)
        for one in aside:
            if one.is_waiting:
                line.put_back(one)

    def _place(self, query: Query, now_s: float, *, is_owed: bool = False) -> Placed | Rejected | None:
        """Place it now; None: it had better wait. One that has waited longest goes wherever it fits."""
        core = self.core
        if core.awaited_s(query.model) is not None:
            return None
        snapshot = core.look(query, now_s)
        if isinstance(snapshot, Rejected):
            return snapshot
        judgement = judge(snapshot, core.policy)
        if judgement is None:
            is_able = able(snapshot)[: snapshot.roster.num_decoders].any()
            return None if is_able else core.refusal(snapshot)
        if not is_owed and not self._policy.gate.is_open(judgement):
            return None
        return core.enter(judgement)

    def _pass_by(self, query: Query, line: Line | None, now_s: float) -> Placed | None:
        """Place a request whose tenant waits for nobody here and, since workers serve tenants in turns, has not enough
        before it there that the gate would close; None: it is none, or nobody could take it."""
        if not (self._policy.tenants and query.tenant) or query.hints.priority < 0:
            return None
        if not self.core.unstarted.has_others(query.tenant) or (line is not None and line.is_waiting(query.tenant)):
            return None
        snapshot = self.core.look(query, now_s)
        judgement = None if isinstance(snapshot, Rejected) else judge(snapshot, self._passing)
        if judgement is None or not self._policy.gate.is_open(judgement):
            return None
        return self.core.enter(judgement)

    def _settle(self, line: Line, one: Waiting, answer: Placed | Rejected, now_s: float, *, is_owed: bool) -> None:
        del self._waiting[one.query.owner, one.query.request_id]
        if isinstance(answer, Placed):
            line.place(one, now_s, is_owed=is_owed)
        else:
            line.remove(one)

    def _expire(self, line: Line, now_s: float, outcomes: list[Outcome]) -> None:
        for one in line.expired(now_s):
            line.remove(one)
            text = f"nobody could take it in the {one.expires_s - one.arrival_s:.1f} s that it could wait"
            outcomes.append(self._refuse(one, Shed.EXPIRED, text, self._wait_s(line, one, now_s), now_s))

    def _refuse(self, one: Waiting, shed: Shed, text: str, retry_after_s: float, now_s: float) -> Outcome:
        """Tell somebody who waits no more, or never did."""
        one.is_waiting = False
        self._waiting.pop((one.query.owner, one.query.request_id), None)
        low_s, high_s = _RETRY_AFTER_S
        answer = Rejected(RejectionCode.OVERLOADED, text, min(max(retry_after_s, low_s), high_s))
        return Outcome(one.query, answer, now_s - one.arrival_s, shed)

    # --- when

    def _opens_s(self, model: str, now_s: float) -> float:
        state = self.core.state(model)
        return now_s if state is None else self._policy.gate.opens_s(state, now_s)

    def _wakes_s(self, model: str, line: Line, now_s: float) -> float:
        opens_s = self._opens_s(model, now_s)
        again_s = line.tried_s + (_PAUSE_S if line.is_due or opens_s > now_s else _POLL_S)
        return min(line.expires_s, max(opens_s, again_s))


def _num_computing(snapshot: Snapshot) -> float:
    """Workers that compute prompts: at most so many seconds of work get done in a second."""
    roster = snapshot.roster
    return float(max(len(roster.worker_ids) - roster.num_decoders, roster.num_decoders, 1))


def _fill(line: Line, now_s: float) -> str:
    return (
        f"{len(line)} requests wait with {line.work_s:.1f} s of work, {line.rate.at(now_s):.2f} s of it go in a second"
    )
