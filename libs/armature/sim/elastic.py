"""A fleet that grows, shrinks and changes roles in simulated time, as a planner decides.

A site is away, starting, ready or draining. Starting takes its time and a GPU; a worker that drains is called back
rather than another started; one that still starts goes before one that works.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple, Protocol

from armature.planning.decision import Decision, Plans
from armature.planning.fleet import NOBODY, Counts, Fleet
from armature.planning.observer import Backlog, Observer
from armature.routing.worker import Role, Worker
from armature.scheduling.request import EngineLoad
from armature.sim.clock import Clock

_ROLES = (Role.AGGREGATED, Role.PREFILL, Role.DECODE)
_LOOKS_S = 0.5
"""Between looks at a worker that drains."""


class Engine(Protocol):
    """What a fleet needs to know of a worker's engine."""

    @property
    def load(self) -> EngineLoad: ...
    @property
    def has_work(self) -> bool: ...


class Place(Protocol):
    """Where a worker can be."""

    worker: Worker
    is_up: bool

    @property
    def engine(self) -> Engine: ...


class Directory(Protocol):
    """Who is told which workers there are."""

    def put_worker(self, worker: Worker) -> None: ...
    def describe(self, worker: Worker) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """Who sizes the fleet, and how fast it can follow.

    Raises:
        ValueError: a time is negative.
    """

    planner: Plans
    start: Counts
    """Ready from the beginning."""
    start_up_s: float = 60.0

    def __post_init__(self) -> None:
        if not 0 <= self.start_up_s < float("inf"):
            raise ValueError(f"start_up_s is {self.start_up_s}; it must be at least 0")


class Level(NamedTuple):
    """The fleet from a time on."""

    at_s: float
    ready: Counts
    starting: int
    draining: int

    @property
    def total(self) -> int:
        return self.ready.total + self.starting + self.draining


class _State(Enum):
    AWAY = 0
    STARTING = 1
    READY = 2
    DRAINING = 3


@dataclass(slots=True, eq=False)
class _Place:
    """A site, and what it is for the fleet."""

    site: Place
    number: int
    state: _State = _State.AWAY
    role: Role = Role.AGGREGATED
    changes: int = 0
    """Events that were foreseen before the last one are void."""


class Elastic:
    """All sites of a cell, by worker; most may be away. `leave` takes a worker out of the simulation, idle."""

    def __init__(
        self,
        scaling: Scaling,
        clock: Clock,
        routers: Directory,
        sites: Mapping[str, Place],
        leave: Callable[[str], None],
    ) -> None:
        if scaling.start.total > len(sites):
            raise ValueError(f"{scaling.start} are to be there from the start, but there is room for {len(sites)}")
        self.observer = Observer()
        self.course: list[Level] = []
        self.decisions: list[Decision] = []
        self._scaling = scaling
        self._clock = clock
        self._routers = routers
        self._leave = leave
        self._places = [_Place(site, number) for number, site in enumerate(sites.values())]
        self._is_over: Callable[[], bool] = lambda: False

    def begin(self, is_over: Callable[[], bool]) -> None:
        """Let the first workers in, and ask the planner until it is over."""
        self._is_over = is_over
        for place in self._places:
            place.site.is_up = False
        for role, count in zip(_ROLES, self._scaling.start, strict=True):
            for place in self._in(_State.AWAY)[:count]:
                place.role = role
                self._ready(place)
        self._note(0.0)
        self._plan(0.0)

    @property
    def fleet(self) -> Fleet:
        """As a planner sees it."""
        return Fleet(self._count(_State.READY), self._count(_State.STARTING), len(self._in(_State.DRAINING)))

    # --- the circle

    def _plan(self, now_s: float) -> None:
        decision = self._scaling.planner.step(self.observer.take(now_s, self.fleet, self._backlogs()))
        if decision.is_change or any(decision.flips):
            self.decisions.append(decision)
            self._apply(decision, now_s)
            self._note(now_s)
        if not self._is_over():
            self._clock.at(max(decision.next_s, now_s + 0.1), self._plan)

    def _backlogs(self) -> tuple[Backlog, ...]:
        told: list[Backlog] = []
        for place in self._in(_State.READY):
            load, block_size = place.site.engine.load, place.site.worker.block_size
            used_blocks = load.total_blocks - load.free_blocks
            told.append(Backlog(load.waiting_prefill_tokens, load.running_seqs, used_blocks * block_size))
        return tuple(told)

    def _apply(self, decision: Decision, now_s: float) -> None:
        self._flip(Role.DECODE, Role.PREFILL, decision.flips.to_prefill)
        self._flip(Role.PREFILL, Role.DECODE, decision.flips.to_decode)
        for role, count in zip(_ROLES, decision.counts, strict=True):
            there = len(self._in(_State.READY, role)) + len(self._in(_State.STARTING, role))
            if count > there:
                self._grow(role, count - there, now_s)
            elif count < there:
                self._shrink(role, there - count, now_s)

    # --- changes

    def _grow(self, role: Role, count: int, now_s: float) -> None:
        back = sorted(self._in(_State.DRAINING), key=lambda place: (place.role is not role, place.number))[:count]
        for place in back:
            place.role = role
            self._ready(place)
        for place in self._in(_State.AWAY)[: count - len(back)]:
            place.role = role
            self._enter(place, _State.STARTING)
            changes = place.changes

            def ready(at_s: float, place: _Place = place, changes: int = changes) -> None:
                if place.changes == changes:
                    self._ready(place)
                    self.observer.started(at_s - now_s)
                    self._note(at_s)

            self._clock.at(now_s + self._scaling.start_up_s, ready)

    def _shrink(self, role: Role, count: int, now_s: float) -> None:
        youngest = sorted(self._in(_State.STARTING, role), key=lambda place: -place.changes)[:count]
        for place in youngest:
            self._enter(place, _State.AWAY)
        idlest = sorted(self._in(_State.READY, role), key=lambda place: (_load(place), -place.number))
        for place in idlest[: count - len(youngest)]:
            self._enter(place, _State.DRAINING)
            self._routers.describe(replace(place.site.worker, is_draining=True))
            self._look(place, place.changes, now_s)

    def _look(self, place: _Place, changes: int, now_s: float) -> None:
        if place.changes != changes:
            return
        if place.site.engine.has_work:
            self._clock.at(now_s + _LOOKS_S, lambda at_s: self._look(place, changes, at_s))
            return
        self._enter(place, _State.AWAY)
        self._leave(place.site.worker.worker_id)
        self._note(now_s)

    def _flip(self, old: Role, new: Role, count: int) -> None:
        idlest = sorted(self._in(_State.READY, old), key=lambda place: (_load(place), -place.number))
        for place in idlest[:count]:
            place.role = new
            self._ready(place)

    def _ready(self, place: _Place) -> None:
        """Let it be given requests; what it has in its cache is still known if it was there before."""
        is_new = place.state in (_State.AWAY, _State.STARTING)
        self._enter(place, _State.READY)
        site = place.site
        site.is_up, site.worker = True, replace(site.worker, role=place.role, is_draining=False)
        if is_new:
            self._routers.put_worker(site.worker)
        else:
            self._routers.describe(site.worker)

    def _enter(self, place: _Place, state: _State) -> None:
        place.state = state
        place.changes += 1

    # --- who is what

    def _in(self, state: _State, role: Role | None = None) -> list[_Place]:
        return [place for place in self._places if place.state is state and role in (None, place.role)]

    def _count(self, state: _State) -> Counts:
        return Counts(*(len(self._in(state, role)) for role in _ROLES)) if self._in(state) else NOBODY

    def _note(self, now_s: float) -> None:
        fleet = self.fleet
        self.course.append(Level(now_s, fleet.ready, fleet.starting.total, fleet.draining))


def _load(place: _Place) -> int:
    load = place.site.engine.load
    return load.running_seqs + load.waiting_seqs
