"""A model's queue by itself: who is next, how long one can be passed over, and who has to go when it is full."""

import math
from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armature.routing.decision import Query
from armature.routing.hints import NO_HINTS, Hints
from armature.routing.queueing.drain_rate import DrainRate
from armature.routing.queueing.line import Line
from armature.routing.queueing.orders import Aged, Fcfs, Wspt
from armature.routing.queueing.settings import QueuePolicy
from armature.routing.queueing.waiting import Waiting, Work

NO_FLOOR = QueuePolicy(floor=0.0)


class Queue:
    """A line that is asked for one request after the other."""

    def __init__(self, policy: QueuePolicy = NO_FLOOR) -> None:
        self.policy = policy
        self.line = Line(policy, DrainRate(1.0, 0.0))
        self._numbers = 0

    def make(self, name: str, work_s: float = 1.0, now_s: float = 0.0, tenant: str = "", **hints: float) -> Waiting:
        self._numbers += 1
        asked = replace(NO_HINTS, **hints)  # type: ignore[arg-type]
        one = Waiting(
            Query(name, "m", 1, tenant=tenant, hints=asked), Work(work_s, int(1000 * work_s)), now_s, self._numbers
        )
        one.band, one.tenant = asked.priority, tenant
        one.key = self.policy.order.key(asked, one.work, now_s)
        one.expires_s = now_s + self.policy.max_wait_s
        return one

    def add(self, name: str, work_s: float = 1.0, now_s: float = 0.0, tenant: str = "", **hints: float) -> Waiting:
        one = self.make(name, work_s, now_s, tenant, **hints)
        self.line.add(one, now_s)
        return one

    def take(self) -> Waiting:
        """Place the next one."""
        owed = self.line.owed()
        one = owed or self.line.pop()
        assert one is not None
        self.line.place(one, 0.0, is_owed=owed is not None)
        return one

    def names(self, count: int = 10**6) -> list[str]:
        return [self.take().query.request_id for _ in range(min(count, len(self.line)))]


def of(tenants: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for tenant in tenants:
        counts[tenant] = counts.get(tenant, 0) + 1
    return counts


# --- order


ORDERS = {
    "first come, first served": (Fcfs(), ["long", "short", "late", "urgent"]),
    "shortest first, and the more of what has waited": (Aged(stretch=4.0), ["urgent", "short", "late", "long"]),
    "first come, first served among those whose patience is out": (
        Aged(stretch=4.0, patience_s=3.0), ["urgent", "long", "short", "late"],
    ),
    "shortest first whatever the age": (Wspt(), ["short", "late", "urgent", "long"]),
}  # fmt: skip


@pytest.mark.parametrize(("order", "names"), ORDERS.values(), ids=ORDERS)
def test_within_a_tenant_the_order_is(order: Aged | Fcfs | Wspt, names: list[str]) -> None:
    queue = Queue(QueuePolicy(order=order, floor=0.0))
    queue.add("long", 4.0)
    queue.add("short", 1.0)
    queue.add("late", 1.0, now_s=2.0)
    queue.add("urgent", 2.0, now_s=2.0, ttft_target_s=2.5)
    assert queue.names() == names


def test_wspt_is_the_published_formula() -> None:
    """Dynamo 1.6: weight 1 + the priority, no less than 1, over the uncached tokens, no less than 1; highest first."""
    order = Wspt()
    for priority, tokens, key in ((0, 64, 1 / 64), (5, 512, 6 / 512), (-3, 100, 1 / 100), (0, 0, 1.0)):
        assert order.key(Hints(priority=priority), Work(9.0, tokens), 77.0) == -key


def test_latency_sensitivity_shortens_what_a_request_has_to_wait_and_a_batch_job_waits_longest() -> None:
    order = Aged(stretch=10.0, patience_s=30.0)
    slack_s = {weight: order.key(Hints(latency_sensitivity=weight), Work(1.0, 1), 100.0) for weight in (0, 1, 2)}
    assert slack_s == {0: 130.0, 1: 110.0, 2: 105.0}


@given(st.lists(st.tuples(st.floats(0.01, 20.0), st.floats(0.0, 5.0)), min_size=2, max_size=30))
def test_nobody_is_overtaken_by_what_comes_after_his_patience(requests: list[tuple[float, float]]) -> None:
    order = Aged(stretch=5.0, patience_s=6.0)
    queue, now_s = Queue(QueuePolicy(order=order, floor=0.0)), 0.0
    for work_s, gap_s in requests:
        now_s += gap_s
        queue.add("r", work_s, now_s)
    taken: list[Waiting] = []
    while len(queue.line):
        one = queue.take()
        assert all(earlier.arrival_s <= one.arrival_s + order.patience_s for earlier in taken)
        taken.append(one)


# --- bands


def test_higher_priorities_go_first() -> None:
    queue = Queue()
    for priority in (0, -1, 5, 0, 5):
        queue.add(f"p{priority}", priority=priority)
    assert queue.names() == ["p5", "p5", "p0", "p0", "p-1"]


def test_a_floor_of_the_work_goes_to_who_has_waited_longest_whatever_his_band() -> None:
    queue = Queue(QueuePolicy(floor=0.25))
    queue.add("low", 2.0, priority=-1)
    queue.add("next low", 1.0, priority=-1)
    placed: list[str] = []
    for number in range(16):
        queue.add(f"high{number}", 1.0, priority=1)
        queue.add(f"more{number}", 1.0, priority=1)
        placed.append(queue.take().query.request_id)
    assert [place for place, name in enumerate(placed) if "low" in name] == [8, 13]


# --- tenants


def test_a_flood_of_one_tenant_does_not_keep_up_the_other() -> None:
    queue = Queue()
    for number in range(100):
        queue.add(f"flood{number}", tenant="flood")
    for number in range(5):
        queue.add(f"quiet{number}", tenant="quiet")
    assert [name[:5] for name in queue.names(10)] == ["flood", "quiet"] * 5


def test_turns_go_by_work_not_by_requests() -> None:
    queue = Queue()
    for number in range(40):
        queue.add(f"long{number}", 4.0, tenant="long")
        queue.add(f"short{number}", 1.0, tenant="short")
    assert of(name.rstrip("0123456789") for name in queue.names(25)) == {"long": 5, "short": 20}


def test_having_been_absent_earns_nothing() -> None:
    queue = Queue()
    for number in range(100):
        queue.add(f"steady{number}", tenant="steady")
    queue.names(50)
    for number in range(50):
        queue.add(f"newcomer{number}", tenant="newcomer")
    assert 9 <= of(name.rstrip("0123456789") for name in queue.names(20))["newcomer"] <= 11


def test_coming_one_at_a_time_earns_nothing_either() -> None:
    """A tenant that has each request wait alone does not start level with those whose clocks are behind its own."""
    queue = Queue()
    for number in range(100):
        queue.add(f"steady{number}", tenant="steady")
    queue.add("single", 3.0, tenant="single")
    taken: list[str] = []
    for _ in range(40):
        taken.append(queue.take().tenant)
        if taken[-1] == "single":
            queue.add("single", 3.0, tenant="single")
    assert of(taken) == {"steady": 30, "single": 10}


Job = tuple[str, float]
JOBS = st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.1, 10.0)), min_size=3, max_size=60)


@given(JOBS)
def test_tenants_that_wait_all_the_time_differ_by_the_largest_request_of_each(jobs: list[Job]) -> None:
    """The bound of start-time fair queueing."""
    queue = Queue()
    for tenant, work_s in jobs:
        queue.add("r", work_s, tenant=tenant)
    left = of(tenant for tenant, _ in jobs)
    largest_s = {name: max(work_s for tenant, work_s in jobs if tenant == name) for name in left}
    placed_s = dict.fromkeys(left, 0.0)
    while all(left.values()):
        one = queue.take()
        placed_s[one.tenant] += one.work.seconds
        left[one.tenant] -= 1
        for first in left:
            for second in left:
                bound_s = largest_s[first] + largest_s[second] + 1e-9
                assert abs(placed_s[first] - placed_s[second]) <= bound_s


# --- nobody starves


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(-2, 2), st.floats(0.1, 10.0), st.integers(0, 2)),
        min_size=1, max_size=80,
    ),
    st.sampled_from([0.05, 0.1, 0.5, 1.0]),
)  # fmt: skip
def test_nothing_waits_longer_than_the_floor_allows(jobs: list[tuple[str, int, float, int]], floor: float) -> None:
    """Between a request's arrival and its turn at most this much is placed: what waited then, and, for each second of
    that and of the largest request, 1 / `floor` seconds of others."""
    queue = Queue(QueuePolicy(order=Aged(stretch=100.0, patience_s=1e6), floor=floor))
    largest_s = max(work_s for _, _, work_s, _ in jobs)
    ahead_s: dict[int, float] = {}
    since_s: dict[int, float] = {}

    def take() -> None:
        one = queue.take()
        for sequence in since_s:
            since_s[sequence] += one.work.seconds
        waited = ahead_s.pop(one.sequence)
        assert since_s.pop(one.sequence) <= (waited + largest_s) / floor + largest_s + waited + 1e-6

    for tenant, priority, work_s, places in jobs:
        one = queue.add("r", work_s, tenant=tenant, priority=priority)
        ahead_s[one.sequence], since_s[one.sequence] = queue.line.work_s, 0.0
        for _ in range(min(places, len(queue.line))):
            take()
    while len(queue.line):
        take()


# --- who has to go


def test_the_youngest_of_the_lowest_band_makes_room_for_a_higher_one() -> None:
    queue = Queue()
    queue.add("old low", priority=-1)
    queue.add("young low", priority=-1)
    queue.add("normal")
    victim = queue.line.victim(queue.make("high", priority=1))
    assert victim is not None and victim.query.request_id == "young low"
    assert queue.line.victim(queue.make("lower", priority=-2)) is None


def test_in_its_own_band_a_newcomer_pushes_out_only_who_has_more_waiting() -> None:
    queue = Queue()
    for number in range(3):
        queue.add(f"flood{number}", tenant="flood")
    queue.add("quiet", tenant="quiet")
    victim = queue.line.victim(queue.make("another", tenant="quiet"))
    assert victim is not None and victim.query.request_id == "flood2"
    assert queue.line.victim(queue.make("more", tenant="flood")) is None
    assert queue.line.victim(queue.make("huge", 9.0, tenant="quiet")) is None


def test_a_queue_is_full_by_requests_or_by_what_drains_in_the_longest_wait() -> None:
    queue = Queue(QueuePolicy(max_requests=3, max_wait_s=10.0))
    queue.add("one")
    queue.add("two")
    assert not queue.line.is_full(0.0)
    queue.add("three")
    assert queue.line.is_full(0.0)
    queue = Queue(QueuePolicy(max_wait_s=10.0))
    queue.add("much", 10.5)
    assert queue.line.is_full(0.0)
    queue.line.rate.placed(30.0, 5.0)
    assert not queue.line.is_full(5.0)


def test_the_expected_wait_counts_higher_bands_the_own_tenant_and_others_turns() -> None:
    queue = Queue(QueuePolicy(order=Aged()))
    queue.add("high", 2.0, priority=1)
    queue.add("small", 1.0, tenant="own")
    queue.add("large", 64.0, tenant="own")
    queue.add("other", 100.0, tenant="other")
    queue.add("low", 50.0, priority=-1)
    rate = queue.line.rate.at(0.0)
    small, large = queue.make("s", 1.0, tenant="own"), queue.make("l", 100.0, tenant="own")
    assert queue.line.wait_s(small, 0.0) == pytest.approx((2.0 + 2 * 1.0 + 1.0) / rate)
    assert queue.line.wait_s(large, 0.0) == pytest.approx((2.0 + 165.0) / rate)


# --- the books


@given(st.data())
def test_the_queue_agrees_with_a_plain_list(data: st.DataObject) -> None:
    queue = Queue(QueuePolicy(order=Aged(), floor=0.2))
    known: dict[int, Waiting] = {}
    now_s = 0.0
    for _ in range(data.draw(st.integers(1, 60))):
        now_s += 1.0
        action = data.draw(st.sampled_from(["add", "add", "take", "leave", "try"]))
        if action == "add" or not known:
            tenant, priority = data.draw(st.sampled_from("ab")), data.draw(st.integers(-1, 1))
            one = queue.add("r", data.draw(st.floats(0.1, 9.0)), now_s, tenant, priority=priority)
            known[one.sequence] = one
        elif action == "take":
            del known[queue.take().sequence]
        elif action == "leave":
            one = known.pop(data.draw(st.sampled_from(sorted(known))))
            queue.line.remove(one)
        else:
            tried = [one for one in (queue.line.pop(), queue.line.pop()) if one is not None]
            for one in tried:
                queue.line.put_back(one)
        line = queue.line
        assert {one.sequence for one in line} == set(known)
        assert line.work_s == pytest.approx(math.fsum(one.work.seconds for one in known.values()))
        assert sum(len(band) for band in line.bands.values()) == len(known)
        assert line.expires_s == min((one.expires_s for one in known.values()), default=math.inf)
    assert sorted(queue.take().sequence for _ in range(len(known))) == sorted(known)


class CountedFloat(float):
    """A key that counts how often it is compared."""

    comparisons = 0

    def __lt__(self, other: float) -> bool:
        CountedFloat.comparisons += 1
        return float(self) < float(other)

    def __eq__(self, other: object) -> bool:
        CountedFloat.comparisons += 1
        return float(self) == other

    __hash__ = float.__hash__


@pytest.mark.parametrize("size", [1_000, 16_000])
def test_an_operation_compares_keys_by_the_logarithm_of_the_length(size: int) -> None:
    queue = Queue(QueuePolicy(order=Wspt(), floor=0.1, max_requests=10**9))

    def add(number: int) -> None:
        one = queue.make(f"r{number}", 1.0 + number * 7919 % 1009, tenant=f"t{number % 50}")
        one.key, one.expires_s = CountedFloat(one.key), CountedFloat(number * 7919 % 1013)
        queue.line.add(one, 0.0)

    for number in range(size):
        add(number)
    CountedFloat.comparisons = 0
    for number in range(500):
        add(size + number)
        queue.take()
        queue.line.remove(next(iter(queue.line)))
        queue.line.victim(queue.make("v"))
    assert CountedFloat.comparisons < 500 * 3 * 8 * math.log2(size)
