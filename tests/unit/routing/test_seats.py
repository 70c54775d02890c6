"""Masks become columns, whoever has which bit and however many there are."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from armature.routing.columns import roster_of
from armature.routing.seats import Seats
from armature.routing.worker import Role, Worker

NAMES = [f"w{number:02}" for number in range(40)]


@given(
    slots=st.lists(st.sampled_from(["", "gone", *NAMES]), unique=True, max_size=42),
    known=st.sets(st.sampled_from(NAMES), min_size=1),
    masks=st.lists(st.integers(0, 2**42 - 1), max_size=4),
)
def test_depths_are_those_of_the_workers_that_the_roster_has(
    slots: list[str], known: set[str], masks: list[int]
) -> None:
    roster = roster_of([Worker(name, Role.AGGREGATED, "m", 16, 1, 1, 1, 1) for name in known])
    ends = [(depth, mask & (1 << len(slots)) - 1) for depth, mask in enumerate(masks, 1)]
    expected = np.zeros(len(known))
    for depth, mask in ends:
        for bit, name in enumerate(slots):
            if mask >> bit & 1 and name in known:
                expected[roster.slots[name]] = depth
    assert Seats(slots, roster).depths(ends).tolist() == expected.tolist()
