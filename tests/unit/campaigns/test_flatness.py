"""The campaign's judgement of memory: what only rises once is no leak, what rises again is one."""

import pytest

from tests.campaigns.gateway.flatness import judged, stretches
from tests.campaigns.gateway.state import State

FLAT = {
    "1 of 10": 130.0,
    "5 of 10": 134.0,
    "10 of 10": 136.0,
    "half have left": 141.0,
    "all have left": 141.5,
    "http unread": 146.0,
    "http unread again": 146.0,
    "end": 147.0,
}


def those_that_grew(**changes_mib: float) -> list[str]:
    """What is not flat when from these states on so much more is held."""
    states: dict[str, State] = {}
    added_mib = 0.0
    for name, mib in FLAT.items():
        added_mib += changes_mib.get(name.replace(" ", "_"), 0.0)
        states[name] = State(mib + added_mib, open_fds=30, tasks=39)
    parts = stretches(states, cases=20_000, clients=1000, silent_readers=50)
    return [what for what, part in judged(states, parts).items() if not part["is_flat"]]


def test_memory_that_rises_once_is_flat() -> None:
    assert those_that_grew() == []


@pytest.mark.parametrize(
    ("where", "mib", "what"),
    [
        ("10_of_10", 10_000 * 2 / 1024, "half of the cases"),
        ("all_have_left", 500 * 20 / 1024, "half of the leavers"),
        ("http_unread_again", 50 * 200 / 1024, "http unread again"),
    ],
)
def test_what_each_repetition_leaves_is_told(where: str, mib: float, what: str) -> None:
    assert those_that_grew(**{where: mib})[0] == what


def test_a_rise_that_does_not_come_back_is_told_if_it_is_large() -> None:
    assert those_that_grew(end=8.0) == ["all of it"]
