"""Leases end when released or when their time is over, once."""

from hypothesis import given
from hypothesis import strategies as st

from armature.blocks.leases import LeaseTable


def test_a_lease_ends_at_its_time_and_not_before() -> None:
    table = LeaseTable()
    table.grant("a", 10.0)
    assert table.expire(9.99) == []
    assert table.next_expiry_s() == 10.0
    assert table.expire(10.0) == ["a"]
    assert table.next_expiry_s() is None
    assert table.expire(99.0) == []


def test_a_released_lease_does_not_expire() -> None:
    table = LeaseTable()
    table.grant("a", 1.0)
    table.grant("b", 2.0)
    assert table.release("a")
    assert not table.release("a")
    assert table.expire(5.0) == ["b"]


def test_granting_again_moves_the_end_in_both_directions() -> None:
    table = LeaseTable()
    table.grant("later", 1.0)
    table.grant("later", 8.0)
    table.grant("sooner", 9.0)
    table.grant("sooner", 2.0)
    assert table.expire(5.0) == ["sooner"]
    assert table.expire(8.0) == ["later"]


COMMANDS = st.lists(
    st.one_of(
        st.tuples(st.just("grant"), st.sampled_from("abc"), st.integers(0, 20)),
        st.tuples(st.just("release"), st.sampled_from("abc"), st.just(0)),
        st.tuples(st.just("expire"), st.just(""), st.integers(0, 20)),
    ),
    max_size=30,
)


@given(COMMANDS)
def test_a_table_behaves_like_a_plain_dictionary(commands: list[tuple[str, str, int]]) -> None:
    table, naive = LeaseTable(), dict[str, float]()
    for command, key, time_s in commands:
        if command == "grant":
            table.grant(key, time_s)
            naive[key] = time_s
        elif command == "release":
            assert table.release(key) == (naive.pop(key, None) is not None)
        else:
            due = sorted((until, name) for name, until in naive.items() if until <= time_s)
            assert table.expire(time_s) == [name for _, name in due]
            for _, name in due:
                del naive[name]
        assert len(table) == len(naive)
        assert table.next_expiry_s() == min(naive.values(), default=None)
