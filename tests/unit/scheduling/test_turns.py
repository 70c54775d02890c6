"""Tenants that wait for one engine get equal shares of it, whatever they send."""

from hypothesis import given
from hypothesis import strategies as st

from armature.scheduling.turns import Turns

ARRIVALS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 50)), max_size=80)


class Line:
    """Requests that wait, served by turn, equals in order of arrival."""

    def __init__(self, credit: int = 0) -> None:
        self.turns = Turns(credit)
        self.waiting: list[tuple[float, int, str, int]] = []
        self.arrivals = 0

    def come(self, tenant: str, tokens: int) -> None:
        self.arrivals += 1
        self.waiting.append((self.turns.take(tenant, tokens), self.arrivals, tenant, tokens))

    def serve(self) -> tuple[str, int]:
        self.waiting.sort()
        turn, _, tenant, tokens = self.waiting.pop(0)
        self.turns.begin(turn)
        if not self.waiting:
            self.turns.rest()
        return tenant, tokens


@given(st.lists(st.integers(1, 50), max_size=30), st.data())
def test_one_tenant_is_served_in_order_of_arrival(sizes: list[int], data: st.DataObject) -> None:
    line, served, expected = Line(), list[int](), list[int]()
    for size in sizes:
        line.come("a", size)
        expected.append(size)
        if data.draw(st.booleans()):
            served.append(line.serve()[1])
    served += [line.serve()[1] for _ in range(len(line.waiting))]
    assert served == expected


@given(ARRIVALS, st.data())
def test_tenants_that_both_wait_differ_by_at_most_a_request_of_each(
    arrivals: list[tuple[str, int]], data: st.DataObject
) -> None:
    line = Line()
    since: dict[frozenset[str], dict[str, int]] = {}
    for tenant, tokens in arrivals:
        line.come(tenant, tokens)
        if data.draw(st.booleans()):
            continue
        waiting = {entry[2] for entry in line.waiting}
        pairs = {frozenset((one, other)) for one in waiting for other in waiting if one != other}
        served, size = line.serve()
        # A stretch in which both wait ends when one of them does not.
        since = {pair: since.get(pair, dict.fromkeys(pair, 0)) for pair in pairs}
        for pair, got in since.items():
            if served in pair:
                got[served] += size
            one, other = pair
            assert abs(got[one] - got[other]) <= 2 * 50


def test_who_has_little_to_do_goes_before_all_that_others_have_piled_up() -> None:
    line = Line()
    for _ in range(100):
        line.come("loud", 50)
    assert line.serve()[0] == line.serve()[0] == "loud"
    line.come("quiet", 10)
    assert [line.serve()[0] for _ in range(3)].count("quiet") == 1


def test_having_been_absent_earns_nothing() -> None:
    line = Line()
    for _ in range(100):
        line.come("early", 10)
        line.serve()
    for _ in range(20):
        line.come("late", 10)
        line.come("early", 10)
    served = [line.serve()[0] for _ in range(20)]
    assert served.count("early") >= 9


def test_what_was_cached_does_not_count() -> None:
    turns = Turns(0)
    assert turns.take("a", 100) == 0
    turns.save("a", 90)
    assert turns.take("a", 100) == 10


def test_who_stays_below_an_equal_share_goes_before_others_with_some_requests_at_once() -> None:
    line = Line(credit=100)
    for _ in range(50):
        line.come("loud", 50)
    for _ in range(10):
        line.serve()
    for _ in range(5):
        line.come("quiet", 20)
    assert [line.serve()[0] for _ in range(5)] == ["quiet"] * 5
    for _ in range(20):
        line.come("quiet", 20)
    served = [line.serve() for _ in range(24)]
    tokens = {tenant: sum(size for name, size in served if name == tenant) for tenant in ("quiet", "loud")}
    assert abs(tokens["quiet"] - tokens["loud"]) <= 100 + 50, "what was earned by waiting is used up"


def test_when_nothing_is_left_to_compute_everybody_begins_anew() -> None:
    turns = Turns(50)
    before = [turns.take("loud", 100) for _ in range(3)]
    turns.begin(before[-1])
    turns.rest()
    assert [turns.take(tenant, 100) for tenant in ("loud", "quiet")] == [before[-1] + 100] * 2


def test_tenants_that_were_here_long_ago_are_forgotten_while_others_keep_their_turns() -> None:
    tidied, kept = Turns(50), Turns(50)
    for turns in (tidied, kept):
        turns.take("gone", 10)
        for _ in range(3):
            turns.begin(turns.take("here", 100))
    tidied.tidy()
    for tenant in ("here", "gone"):
        assert tidied.take(tenant, 10) == kept.take(tenant, 10)


def test_who_had_more_while_there_was_room_for_all_does_not_stand_behind_all_that_others_pile_up() -> None:
    line = Line(credit=1000)
    for _ in range(100):
        for tenant, tokens in (("steady", 60), ("steady", 60), ("loud", 30)):
            line.come(tenant, tokens)
            assert line.serve()[0] == tenant
    served: list[str] = []
    for _ in range(20):
        for tenant in ("loud",) * 10 + ("steady",):
            line.come(tenant, 60)
        served += [line.serve()[0] for _ in range(3)]
    assert served.count("steady") == 20
    assert "steady" in served[:3]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 50)), max_size=60), st.data())
def test_a_tenant_is_never_overtaken_by_its_own_later_requests(
    arrivals: list[tuple[str, int]], data: st.DataObject
) -> None:
    line, latest = Line(credit=100), dict[str, float]()
    for tenant, tokens in arrivals:
        line.come(tenant, tokens)
        turn = line.waiting[-1][0]
        assert turn >= latest.get(tenant, turn)
        latest[tenant] = turn
        if data.draw(st.booleans()):
            line.serve()
