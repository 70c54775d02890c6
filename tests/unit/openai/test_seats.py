"""Connections are counted as they come and go, in all and by address."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armature.openai.serving.http.seats import SPARE_SEATS, SPARE_SEATS_OF_ONE, Seat, SeatOptions, Seats

HOSTS = ("10.0.0.1", "10.0.0.2", "::1", "2001:db8::1", "2001:db8:0:1::1")


@given(
    st.integers(1, 6),
    st.integers(0, 3),
    st.lists(st.one_of(st.sampled_from(HOSTS), st.integers(0, 20)), max_size=60),
)
def test_no_more_are_seated_than_may_be_and_who_leaves_makes_room(
    most: int, of_one: int, steps: list[str | int]
) -> None:
    """A host comes, or the seat of this number is left, perhaps for the second time."""
    seats, seated = Seats(SeatOptions(most, of_one)), list[tuple[str, Seat]]()
    for step in steps:
        if isinstance(step, int):
            if seated:
                _, seat = seated.pop(step % len(seated))
                assert seat.leave() and not seat.leave()
            continue
        usual = Counter(host for host, seat in seated if seat.reason is None)
        spare = Counter(host for host, seat in seated if seat.reason is not None)
        taken = seats.take(step)
        is_too_many = bool(of_one) and usual[step] >= of_one
        reason = "all_taken" if usual.total() >= most else "address" if is_too_many else None
        if reason and spare[step] >= SPARE_SEATS_OF_ONE:
            assert taken == reason
        else:
            assert isinstance(taken, Seat) and taken.reason == reason
            seated.append((step, taken))
        assert seats.num_taken == len(seated)


def test_spare_seats_are_few() -> None:
    seats = Seats(SeatOptions(max_connections=1))
    taken = [seats.take(f"10.0.{place}.1") for place in range(1 + SPARE_SEATS)]
    assert all(isinstance(seat, Seat) for seat in taken)
    assert seats.take("10.1.0.1") == "all_taken"


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.2", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
    ],
)
def test_an_address_is_a_network_of_ipv6_or_a_host_of_ipv4(one: str, other: str, is_same: bool) -> None:
    seats = Seats(SeatOptions(max_connections_per_address=1))
    first, second = seats.take(one), seats.take(other)
    assert isinstance(first, Seat) and isinstance(second, Seat)
    assert (second.reason == "address") == is_same


@pytest.mark.parametrize("wrong", [{"max_connections": 0}, {"max_connections_per_address": -1}])
def test_bounds_that_can_not_work_are_refused_by_name(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SeatOptions(**wrong)
