"""A planner's loop on a fleet that does as it is told: who leads acts, and everything is said."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

from armature.connectors.connector import Observed, Order, Outcome, Problem, ProblemKind, Reach
from armature.performance.linear import LinearModel
from armature.planning.fleet import Counts, Fleet, WorkerKind
from armature.planning.observer import Backlog, Observer
from armature.planning.policy import PlannerPolicy, planner_policy_of
from armature.runtime.policies import load_policy
from armature.steering.book import Book
from armature.steering.loop import Steering, SteeringOptions
from armature.steering.workers import WorkerBoard
from armature.v1.common_pb2 import ModelCard
from armature.v1.planner_pb2 import LogEntry, PlannerTargets

KIND = WorkerKind(performance=LinearModel(0.01, 1e-4, 1e-8, 1e-3, 0.0), kv_tokens=64_000, max_num_seqs=32)
"""A prompt of 1,000 tokens takes a second."""
POLICY = planner_policy_of({
    "targets": {"ttft_s": 3.0, "itl_s": 0.5}, "interval_s": 0.02, "window_s": 0.1, "pattern_s": 60.0,
    "start_up_s": 0.1, "limits": {"max_workers": 6},
})  # fmt: skip


@dataclass
class FakeBook:
    targets: PlannerTargets | None = None
    noted: list[LogEntry] = field(default_factory=list[LogEntry])

    def entries(self, limit: int, after: int = 0) -> list[LogEntry]:
        return self.noted[-limit:]

    def note(self, entry: LogEntry) -> None:
        self.noted.append(entry)

    async def flush(self) -> None:
        pass

    async def set_targets(self, targets: PlannerTargets) -> None:
        self.targets = targets

    async def forget_targets(self) -> None:
        self.targets = None


@dataclass
class FakeBoard:
    kind: WorkerKind | None = KIND
    model: str = "m"
    block_size: int = 16
    card: ModelCard | None = field(default_factory=lambda: ModelCard(name="m"))
    expected: list[tuple[Counts, Counts]] = field(default_factory=list[tuple[Counts, Counts]])

    def backlogs(self) -> tuple[Backlog, ...]:
        return ()

    def expect(self, before: Counts, after: Counts) -> None:
        self.expected.append((before, after))


@dataclass
class FakeConnector:
    fleet: Fleet = field(default_factory=lambda: Fleet(Counts(1)))
    orders: list[Order] = field(default_factory=list[Order])
    problems: tuple[Problem, ...] = ()
    name: str = "fake"
    reach: Reach = Reach.SCALES
    before: Callable[[], None] = lambda: None

    async def observe(self) -> Observed:
        self.before()
        return Observed(self.fleet, self.problems, is_stale=bool(self.problems))

    async def apply(self, order: Order) -> Outcome:
        self.orders.append(order)
        self.fleet = Fleet(order.counts)
        return Outcome((f"there are {order.counts}",))

    async def close(self) -> None:
        pass


class World:
    def __init__(self, *, leads: bool = True, budget_s: float = 0.0, policy: PlannerPolicy = POLICY) -> None:
        self.book, self.board, self.connector = FakeBook(), FakeBoard(), FakeConnector()
        self.observer, self.leads = Observer(time.monotonic()), leads
        options = SteeringOptions(
            policy=policy, is_mode_open=True, placement=load_policy("seconds"), rehearsal_budget_s=budget_s
        )
        self.steering = Steering(
            options, cast(WorkerBoard, self.board), self.observer, self.connector, cast(Book, self.book),
            lambda: self.leads,
        )  # fmt: skip

    def overload(self, prompt_rate: float = 3000.0, output_rate: float = 0.0) -> None:
        """From now on there are so many tokens a second, by default work for three workers, however long steps take."""
        self.connector.before = lambda: self._ask(prompt_rate, output_rate)
        self._asked_s = time.monotonic()

    def _ask(self, prompt_rate: float, output_rate: float) -> None:
        now_s = time.monotonic()
        passed_s, self._asked_s = now_s - self._asked_s, now_s
        tokens = max(round(prompt_rate * passed_s), 1)
        self.observer.arrive(now_s, tokens)
        self.observer.first_token(0.1, tokens)
        self.observer.finish(tokens, 0, max(round(output_rate * passed_s), 5), 0.1)

    async def run(self, until: Callable[[], Any]) -> None:
        running = asyncio.create_task(self.steering.run())
        async with asyncio.timeout(20):
            while not until():
                await self.steering.stepped.wait()
        running.cancel()
        await asyncio.wait({running})

    def kinds(self) -> "list[LogEntry.Kind.ValueType]":
        return [entry.kind for entry in self.book.noted]


async def test_the_leader_grows_the_fleet_and_says_why() -> None:
    world = World()
    world.overload()
    await world.run(lambda: world.book.noted)
    counts = world.connector.orders[0].counts
    assert counts.aggregated >= 2 and world.board.expected[0] == (Counts(1), counts)
    entry = world.book.noted[0]
    assert entry.kind == LogEntry.KIND_CHANGE and entry.done == [f"there are {counts}"]
    assert f"{counts} instead of 1 aggregated" in entry.text and "would miss a target" in entry.text
    assert world.steering.status.fleet.ready.aggregated == 1


async def test_who_stands_by_decides_the_same_and_does_nothing() -> None:
    world = World(leads=False)
    world.overload()
    await world.run(lambda: world.steering.status.plan.is_change)
    assert world.steering.status.plan.counts.aggregated >= 2
    assert not world.connector.orders and not world.book.noted
    world.leads = True
    world.steering.lead(True)
    await world.run(lambda: world.connector.orders)
    assert world.kinds()[:2] == [LogEntry.KIND_LEADERSHIP, LogEntry.KIND_CHANGE]
    assert "knows of" in world.book.noted[0].text and "of 0 requests" not in world.book.noted[0].text


async def test_nothing_is_decided_on_what_is_not_known() -> None:
    world = World()
    world.overload()
    world.connector.problems = (Problem(ProblemKind.AWAY, "nobody answers"),)
    await world.run(lambda: len(world.steering.status.obstacles) == 2)
    assert world.steering.status.obstacles[0] == "nobody answers" and not world.connector.orders
    world.connector.problems, world.board.kind = (), None
    await world.run(lambda: "no worker has measured" in "".join(world.steering.status.obstacles))
    world.board.kind, world.connector.fleet = KIND, Fleet(Counts(1, 1, 1))
    await world.run(lambda: "know no others" in "".join(world.steering.status.obstacles))
    assert not world.connector.orders


async def test_paused_it_tells_once_what_it_would_do() -> None:
    world = World()
    world.overload()
    world.book.targets = replace_targets(world, is_paused=True)
    await world.run(lambda: world.kinds() and world.steering.status.plan.is_change)
    await world.run(lambda: world.steering.status.plan.is_change)
    assert world.kinds() == [LogEntry.KIND_HELD] and "paused" in world.book.noted[0].text
    assert not world.connector.orders


async def test_a_plan_that_is_worse_in_its_rehearsal_is_held_back_and_told_once() -> None:
    """A block holds as much as the whole pool: in the replay a worker answers one request at a time, which planning
    does not know. It wants one or two workers, and keeping six is better."""
    targets = replace(POLICY.targets, ttft_s=0.3)
    world = World(budget_s=60.0, policy=replace(POLICY, targets=targets, down_after_s=1.0))
    world.board.block_size = KIND.kv_tokens
    world.connector.fleet = Fleet(Counts(6))
    world.overload(prompt_rate=20.0, output_rate=350.0)
    await world.run(world.kinds)
    await world.run(lambda: world.steering.status.plan.is_change)
    (entry,) = world.book.noted
    assert entry.kind == LogEntry.KIND_HELD and entry.text.startswith("held back, keeping is better: ")
    assert entry.rehearsal.attained < entry.rehearsal.attained_now
    assert "targets hold in" in entry.text and not world.connector.orders
    world.book.targets = replace_targets(world, max_workers=2)
    await world.run(lambda: world.connector.orders)
    assert world.connector.orders[0].counts.total <= 2, "limits hold whatever a rehearsal says"


async def test_a_fleet_that_may_vanish_is_promised_to_come_back_and_a_request_brings_it_back_at_once() -> None:
    limits = replace(POLICY.limits, min_workers=0)
    policy = replace(POLICY, limits=limits, idle_after_s=0.3, interval_s=0.1)
    world = World(budget_s=60.0, policy=policy)
    world.overload()
    await world.run(lambda: world.steering.status.plan.predicted.ttft_s)
    assert world.steering.promise().wakes.name == "m"
    world.connector.before = lambda: None
    await world.run(lambda: not world.connector.fleet.wanted.total)
    assert world.book.noted[-1].plan.reason == "idle"
    slow = replace(policy, interval_s=60.0, window_s=60.0, pattern_s=60.0)
    world.steering._options = replace(world.steering._options, policy=slow)

    async def ask() -> None:
        await asyncio.sleep(0.2)
        world.observer.arrive(time.monotonic(), 500)
        world.steering.asked()

    asking = asyncio.create_task(ask())
    await world.run(lambda: world.connector.fleet.wanted.total)
    await asking
    assert world.book.noted[-1].plan.reason == "wake" and world.connector.orders[-1].counts == Counts(1)


async def test_held_requests_bring_back_a_worker_though_the_planner_has_never_known_one() -> None:
    world = World(leads=False, policy=replace(POLICY, limits=replace(POLICY.limits, min_workers=0)))
    world.board.kind, world.connector.fleet = None, Fleet(Counts())
    steps: list[bool] = []
    world.connector.before = lambda: steps.append(world.leads)
    world.observer.arrive(time.monotonic(), 500)
    await world.run(lambda: len(steps) > 2)
    assert not world.connector.orders, "it stands by"
    world.leads = True
    await world.run(lambda: sum(steps) > 3)
    assert world.connector.orders == [Order(Counts(1))], "once"
    assert world.board.expected == [(Counts(), Counts(1))], "its start-up is measured"
    assert world.kinds() == [LogEntry.KIND_CHANGE] and "requests are held" in world.book.noted[0].text


async def test_where_only_roles_can_change_plans_are_for_as_many_workers_as_there_are() -> None:
    world = World()
    world.connector.reach, world.connector.fleet = Reach.FLIPS, Fleet(Counts(0, 1, 3))
    world.overload(prompt_rate=6000.0)
    await world.run(lambda: world.connector.fleet.ready == Counts(0, 3, 1))
    assert sum(order.flips.to_prefill - order.flips.to_decode for order in world.connector.orders) == 2
    world.connector.before = lambda: None
    await world.run(lambda: world.steering.status.plan.reason in ("surplus", "settling", "steady"))
    assert all(order.counts.total == 4 for order in world.connector.orders)


async def test_advice_is_told_once_and_not_as_done() -> None:
    world = World()
    world.connector.reach = Reach.TELLS
    world.overload()
    await world.run(world.kinds)
    await world.run(lambda: world.steering.status.plan.is_change)
    assert set(world.kinds()) == {LogEntry.KIND_HELD} and not world.connector.orders
    assert world.book.noted[0].text.startswith("advice, not done: ")


async def test_nobody_is_promised_what_will_not_be_done() -> None:
    world = World(policy=replace(POLICY, limits=replace(POLICY.limits, min_workers=0)))
    assert world.steering.promise().HasField("wakes")
    world.book.targets = replace_targets(world, is_paused=True)
    assert not world.steering.promise().HasField("wakes")
    world.book.targets, world.connector.reach = None, Reach.TELLS
    assert not world.steering.promise().HasField("wakes")
    assert not World().steering.promise().HasField("wakes")


async def test_targets_that_people_set_count() -> None:
    world = World()
    world.overload()
    world.book.targets = replace_targets(world, max_workers=2)
    await world.run(lambda: world.steering.status.plan.reason == "limit")
    assert {order.counts for order in world.connector.orders} == {Counts(2)}


async def test_anybody_may_ask_what_another_fleet_would_have_come_to() -> None:
    world = World(leads=False, budget_s=60.0)
    assert isinstance(await world.steering.rehearse(Counts(2)), str)
    world.overload()
    await world.run(lambda: world.steering.status.plan.is_change)
    rehearsed = await world.steering.rehearse(Counts(2))
    assert not isinstance(rehearsed, str) and rehearsed.verdict is not None
    assert rehearsed.scene.counts == Counts(2) and rehearsed.scene.now == Counts(1)
    assert rehearsed.verdict.attained >= rehearsed.verdict.attained_now


async def test_a_step_that_fails_is_told_and_the_next_one_is_taken() -> None:
    world = World()
    world.overload()
    kind = world.board.kind
    world.board.kind = cast(WorkerKind, "no kind")
    await world.run(lambda: "the step has failed" in "".join(world.steering.status.obstacles))
    world.board.kind = kind
    await world.run(lambda: world.connector.orders)


def replace_targets(world: World, **changes: Any) -> PlannerTargets:
    targets = world.steering.targets()
    for name, value in changes.items():
        setattr(targets, name, value)
    return targets
