"""The table of a request's states."""

import pytest

from armature.scheduling.lifecycle import TABLE, Event, State, advance


def test_a_pair_that_is_not_in_the_table_raises():
    with pytest.raises(ValueError, match="fetching can't be told 'finish'"):
        advance(State.FETCHING, Event.FINISH)


def test_every_state_can_be_reached_and_left():
    reached = {State.WAITING, *TABLE.values()}
    left = {state for state, _ in TABLE}
    assert reached == set(State)
    assert left == set(State) - {State.FINISHED}
